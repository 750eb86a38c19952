"""Padding on the left, on the right or on both sides changes nothing for the tokens."""

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="pip install 'crma[jax]'")
torch = pytest.importorskip("torch", reason="the decoder is compared with transformers")

from backends.jax.backend import COMPILER_OPTIONS as QUICK
from backends.jax.decoder import generate, logits, loss
from backends.jax.decoder.tests.conftest import TOLERANCE
from reference.errors import ConfigError, ShapeError

scores = jax.jit(logits, compiler_options=QUICK)
mean_loss = jax.jit(loss, compiler_options=QUICK)
gradients_of = jax.jit(jax.grad(loss), compiler_options=QUICK)
SPANS = {"left": [(0, 50), (29, 50)], "right": [(0, 50), (0, 21)], "both": [(5, 50), (7, 33)]}


@pytest.mark.parametrize("side", SPANS)
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "phi4"])
def test_padded_rows_equal_transformers(case_of, name, side):
    case = case_of(name)
    rng = np.random.default_rng(len(side))
    mask = np.zeros((2, 50), np.int64)
    for row, (start, stop) in enumerate(SPANS[side]):
        mask[row, start:stop] = 1
    ids = np.where(mask, rng.integers(3, case.config.vocab_size, mask.shape), 0)
    positions = np.where(mask, mask.cumsum(axis=1) - 1, 0)  # as generate of transformers counts them
    inputs = {"attention_mask": torch.from_numpy(mask), "position_ids": torch.from_numpy(positions)}
    with torch.no_grad():
        expected = case.model(input_ids=torch.from_numpy(ids), use_cache=False, **inputs).logits.numpy()
    actual = np.asarray(scores(case.params, case.config, ids, mask))
    assert np.isfinite(actual).all()
    difference = np.abs(actual - expected)[mask == 1]
    assert difference.max() < TOLERANCE * np.abs(expected[mask == 1]).max()
    assert actual[mask == 1].std() > 0.1  # not all the same


def test_a_padded_row_equals_itself_alone(case_of):
    case = case_of("gemma2")
    ids = np.random.default_rng(1).integers(3, case.config.vocab_size, (1, 20))
    alone = np.asarray(scores(case.params, case.config, ids))
    for left, right in ((7, 0), (0, 7), (3, 4)):
        padded, mask = (np.pad(h, ((0, 0), (left, right))) for h in (ids, np.ones_like(ids)))
        inside = np.asarray(scores(case.params, case.config, padded, mask))[:, left : left + 20]
        assert np.abs(inside - alone).max() < TOLERANCE * np.abs(alone).max()
        labels = np.where(mask, padded, -100)
        if left == 0:
            expected = float(mean_loss(case.params, case.config, ids, ids))
            assert float(mean_loss(case.params, case.config, padded, labels, mask)) == pytest.approx(expected, rel=1e-5)


def test_gradients_with_padding_are_finite(case_of):
    case = case_of("mistral")
    mask = np.array([[0] * 12 + [1] * 8])
    ids = np.where(mask, 5, 0)
    gradients = gradients_of(case.params, case.config, ids, np.where(mask, ids, -100), mask)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    ("ids", "mask", "error", "words"),
    [
        (np.zeros(4, int), None, ShapeError, "batch, tokens"),
        (np.zeros((2, 0), int), None, ShapeError, "batch, tokens"),
        (np.zeros((1, 4)), None, ShapeError, "integers"),
        ([[3, 4], [5]], None, ShapeError, "pad the rows"),
        (np.array([[3, 96]]), None, ConfigError, "0 to 95"),
        (np.array([[3, -1]]), None, ConfigError, "0 to 95"),
        (np.zeros((1, 4), int), np.ones((1, 5)), ShapeError, "attention_mask"),
    ],
)
def test_wrong_input_is_named(case_of, ids, mask, error, words):
    case = case_of("llama")
    for function in (logits, lambda *args: generate(*args, max_new_tokens=1)):
        with pytest.raises(error, match=words):
            function(case.params, case.config, ids, mask)


def test_labels_and_positions_of_another_shape_are_named(case_of):
    case, ids = case_of("llama"), np.array([[3, 4, 5]])
    with pytest.raises(ShapeError, match="labels"):
        loss(case.params, case.config, ids, ids[:, 1:])
    with pytest.raises(ShapeError, match="position_ids"):
        logits(case.params, case.config, ids, position_ids=np.arange(3))


def test_a_row_with_an_id_outside_of_the_vocabulary_gives_nan_under_jit(case_of):
    case = case_of("llama")
    for token in (96, -1):
        actual = np.asarray(scores(case.params, case.config, np.array([[3, 4, token], [3, 4, 5]])))
        assert np.isnan(actual[0]).all()
        assert np.isfinite(actual[1]).all()

"""The decoder computes what transformers computes in float32 with eager attention: logits, loss, gradients."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="pip install 'crma[jax]'")
torch = pytest.importorskip("torch", reason="the decoder is compared with transformers")

from backends.jax.backend import COMPILER_OPTIONS as QUICK
from backends.jax.decoder import logits, loss
from backends.jax.decoder.tests.conftest import TOLERANCE
from backends.jax.decoder.weights import layout

TOKENS = 60  # beyond each sliding window, and beyond the 40 tokens that phi4 was "first trained on"
scores = jax.jit(logits)
quick_scores = jax.jit(logits, compiler_options=QUICK)
loss_and_gradients = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)


def draw_ids(config, rng, shape=(2, TOKENS)):
    return rng.integers(3, config.vocab_size, shape)


def relative_difference(actual, expected):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max() / np.abs(expected).max()


def torch_logits(model, ids, **inputs):
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(ids), use_cache=False, **inputs).logits.numpy()


def test_logits(case):
    ids = draw_ids(case.config, np.random.default_rng(0))
    actual = scores(case.params, case.config, ids)
    assert actual.dtype == np.float32
    assert relative_difference(actual, torch_logits(case.model, ids)) < TOLERANCE


@pytest.mark.parametrize("name", ["llama3", "phi4"])
def test_logits_of_a_sequence_up_to_the_original_length(case_of, name):
    case = case_of(name)
    for tokens in (1, 32 if name == "llama3" else 40):
        ids = draw_ids(case.config, np.random.default_rng(tokens), (2, tokens))
        actual = quick_scores(case.params, case.config, ids)
        assert relative_difference(actual, torch_logits(case.model, ids)) < TOLERANCE


@pytest.mark.parametrize("name", ["llama-biases", "mistral", "gemma2", "phi4"])
def test_loss_and_gradients_of_all_weights(case_of, name):
    case, rng = case_of(name), np.random.default_rng(1)
    ids = draw_ids(case.config, rng)
    labels = np.where(rng.random(ids.shape) < 0.3, -100, ids)
    case.model.zero_grad()
    expected = case.model(input_ids=torch.from_numpy(ids), labels=torch.from_numpy(labels), use_cache=False).loss
    expected.backward()
    value, gradients = loss_and_gradients(case.params, case.config, ids, labels)
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)  # a mean over 80 tokens
    torch_gradients = {name: weight.grad.numpy() for name, weight in case.model.named_parameters()}
    compared = set()
    for stack in layout(case.config):
        actual = gradients["layers"][stack.path[1]] if stack.stacked else gradients[stack.path[0]]
        for index, name in enumerate(stack.tensors):
            # A gradient sums over all tokens and goes twice through each layer: ten times the tolerance of a logit.
            one = actual[index] if stack.stacked else actual
            if name.endswith("k_proj.bias"):  # without rope it would be zero: the softmax takes no constant
                assert np.abs(one - torch_gradients[name]).max() < 10 * TOLERANCE * np.abs(gradients["norm"]).max()
            else:
                assert relative_difference(one, torch_gradients[name]) < 10 * TOLERANCE, name
            compared.add(name)
    assert compared == set(torch_gradients)


def test_a_batch_without_labels_has_no_loss(case_of):
    _, _, params, config = case_of("llama-biases")
    ids = draw_ids(config, np.random.default_rng(2))
    assert np.isnan(loss_and_gradients(params, config, ids, np.full_like(ids, -100))[0])


CHANGES: dict[str, list[dict[str, Any]]] = {
    "llama": [{"norm_epsilon": 0.01}, {"activation": "gelu"}, {"attention_scale": 0.2}, {"logit_soft_cap": 20.0}],
    "mistral": [{"windows": (9, 9, 9)}, {"windows": (7, 7, 7)}, {"windows": (0, 0, 0)}, {"windows": (8, 8, 9)}],
    "gemma2": [
        {"windows": (0, 8, 0)},
        {"windows": (8, 8, 8)},
        {"attention_soft_cap": None},
        {"logit_soft_cap": None},
        {"attention_scale": 32**-0.5},
        {"norm_offset": False},
        {"embedding_scale": None},
        {"activation": "silu"},
        {"activation": "gelu"},
    ],
}
ROPE_CHANGES: dict[str, list[dict[str, Any]]] = {
    "llama": [{"theta": 9000.0}],
    "llama-biases": [{"factor": 3.0}],
    "llama3": [{"rope_type": "default"}, {"low_freq_factor": 2.0}, {"high_freq_factor": 3.0}, {"original_length": 40}],
    "phi4": [{"original_length": 60}, {"attention_factor": 1.0}, {"long_factors": (2.0,) * 6}],
}
MUTANTS = [(name, False, change) for name, changes in CHANGES.items() for change in changes]
MUTANTS += [(name, True, change) for name, changes in ROPE_CHANGES.items() for change in changes]


@pytest.mark.parametrize(("name", "is_rope", "change"), MUTANTS, ids=[f"{m[0]}-{m[2]}" for m in MUTANTS])
def test_the_tolerance_sees_each_switch(case_of, name, is_rope, change):
    case = case_of(name)
    ids = draw_ids(case.config, np.random.default_rng(3))
    config = (
        replace(case.config, rope=replace(case.config.rope, **change)) if is_rope else replace(case.config, **change)
    )
    expected = quick_scores(case.params, case.config, ids)
    # GELU and its approximation by tanh differ by 5e-4 at most.
    least = 2 if change == {"activation": "gelu"} and name == "gemma2" else 50
    assert relative_difference(quick_scores(case.params, config, ids), expected) > least * TOLERANCE

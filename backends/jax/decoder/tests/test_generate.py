"""Greedy generation with the cache equals that of transformers, token by token."""

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="pip install 'crma[jax]'")
torch = pytest.importorskip("torch", reason="the decoder is compared with transformers")

from backends.jax.decoder import generate, logits
from reference.errors import ConfigError

PROMPT, NEW = 20, 40  # 60 tokens in the end: beyond the windows, and beyond the 40 tokens phi4 switches factors at


def transformers_generate(model, ids, *, new=NEW, eos=None, mask=None):
    model.generation_config.eos_token_id = eos
    with torch.no_grad():
        return model.generate(
            torch.from_numpy(ids),
            attention_mask=torch.from_numpy(np.ones_like(ids) if mask is None else mask),
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        ).numpy()


def draw_prompts(seed, config):
    return np.random.default_rng(seed).integers(3, config.vocab_size, (2, PROMPT))


@pytest.mark.parametrize("name", ["llama-biases", "llama3", "mistral", "gemma2", "phi4"])
def test_greedy_tokens(case_of, name):
    case = case_of(name)
    ids = draw_prompts(1, case.config)
    actual = generate(case.params, case.config, ids, max_new_tokens=NEW, eos_token_ids=())
    assert actual.dtype == np.int32
    np.testing.assert_array_equal(actual, transformers_generate(case.model, ids))
    assert len(np.unique(actual[:, PROMPT:])) > 10  # not one token again and again


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_left_padding(case_of, name):
    case = case_of(name)
    ids, mask = draw_prompts(2, case.config), np.ones((2, PROMPT), np.int64)
    ids[1, :13], mask[1, :13] = 0, 0
    actual = generate(case.params, case.config, ids, mask, max_new_tokens=NEW, eos_token_ids=())
    np.testing.assert_array_equal(actual, transformers_generate(case.model, ids, mask=mask))
    alone = transformers_generate(case.model, ids[1:, 13:])
    np.testing.assert_array_equal(actual[1:, 13:], alone)


def test_longrope_switches_its_factors_where_the_longest_row_crosses_the_original_length(case_of):
    case = case_of("phi4")
    ids, mask = draw_prompts(3, case.config), np.ones((2, PROMPT), np.int64)
    ids[0, :5], mask[0, :5] = 0, 0
    actual = generate(case.params, case.config, ids, mask, max_new_tokens=NEW, eos_token_ids=())
    np.testing.assert_array_equal(actual[1:], transformers_generate(case.model, ids[1:]))
    full_mask = np.pad(mask, ((0, 0), (0, NEW)), constant_values=1)
    beyond = np.asarray(logits(case.params, case.config, actual, full_mask).argmax(-1))
    # The last tokens were chosen under the long factors, which now hold for the whole sequence.
    np.testing.assert_array_equal(beyond[:, -20:-1], actual[:, -19:])


def test_end_tokens_stop_rows_and_then_the_loop(case_of):
    case = case_of("llama3")
    ids = draw_prompts(4, case.config)
    free = generate(case.params, case.config, ids, max_new_tokens=NEW, eos_token_ids=())
    ends = [int(free[0, PROMPT + 4]), int(free[1, PROMPT + 9])]
    expected = transformers_generate(case.model, ids, eos=ends)
    actual = generate(case.params, case.config, ids, max_new_tokens=NEW, eos_token_ids=ends, pad_token_id=0)
    np.testing.assert_array_equal(actual, expected)
    assert actual.shape[1] < PROMPT + NEW
    assert (actual[:, -1] == 0).sum() < 2  # the longer row ends with its end token


def test_the_models_own_end_token_is_the_default(case_of):
    case = case_of("llama3")
    assert case.config.eos_token_ids == (2,)
    for seed in range(50):
        ids = draw_prompts(seed, case.config)
        free = generate(case.params, case.config, ids, max_new_tokens=NEW, eos_token_ids=())[:, PROMPT:]
        if (free == 2).any():
            break
    actual = generate(case.params, case.config, ids, max_new_tokens=NEW)
    assert not np.array_equal(actual[:, PROMPT:], free)
    np.testing.assert_array_equal(actual, transformers_generate(case.model, ids, eos=2))


@pytest.mark.parametrize("mask", [[[1, 1, 0]], [[1, 0, 1]], [[0, 0, 0]]])
def test_padding_on_the_right_is_refused(case_of, mask):
    case = case_of("llama")
    with pytest.raises(ConfigError, match=r"row 0.*pad prompts on the left"):
        generate(case.params, case.config, [[3, 4, 5]], np.array(mask), max_new_tokens=1)


@pytest.mark.parametrize("new", [0, -1, 1.5, True])
def test_a_wrong_number_of_tokens_is_refused(case_of, new):
    case = case_of("llama")
    with pytest.raises(ConfigError, match="max_new_tokens"):
        generate(case.params, case.config, [[3]], max_new_tokens=new)

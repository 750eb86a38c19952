"""bfloat16, mixed precision, float16 and float64: as exact as the dtype allows, whatever JAX's x64 flag says."""

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="pip install 'crma[jax]'")
torch = pytest.importorskip("torch", reason="the decoder is compared with transformers")

import jax.numpy as jnp

from backends.jax.backend import COMPILER_OPTIONS as QUICK
from backends.jax.decoder import generate, load_decoder, logits, loss
from backends.jax.decoder.tests.conftest import TOLERANCE, build_model

scores = jax.jit(logits, static_argnames="matmul_dtype", compiler_options=QUICK)


def three_logits(case, name, run_torch, **options):
    """In float32 by transformers, in fewer bits by transformers, in fewer bits by the decoder."""
    ids = np.random.default_rng(1).integers(3, case.config.vocab_size, (4, 60))
    inputs = {"input_ids": torch.from_numpy(ids), "use_cache": False}
    with torch.no_grad():
        exact, theirs = case.model(**inputs).logits.numpy(), run_torch(build_model(name), inputs)
    dtype = "float32" if options else "bfloat16"
    params, config = load_decoder(case.folder, dtype=dtype)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
    ours = scores(params, config, ids, **options)
    assert ours.dtype == jnp.bfloat16
    return exact, theirs, np.asarray(ours, np.float32)


@pytest.mark.parametrize("name", ["gemma2", "phi4"])
@pytest.mark.parametrize("way", ["bfloat16", "mixed"])
def test_half_precision_is_as_good_as_transformers_own(case_of, name, way):
    def in_bfloat16(model, inputs):
        return model.to(torch.bfloat16)(**inputs).logits.float().numpy()

    def mixed(model, inputs):
        with torch.autocast("cpu", torch.bfloat16):
            return model(**inputs).logits.float().numpy()

    run_torch, options = (mixed, {"matmul_dtype": jnp.bfloat16}) if way == "mixed" else (in_bfloat16, {})
    exact, theirs, ours = three_logits(case_of(name), name, run_torch, **options)
    # Rounding to 8 bits is felt differently by each order of operations, so only mean errors can be compared.
    their_error, our_error = np.abs(theirs - exact).mean(), np.abs(ours - exact).mean()
    assert 0 < our_error < 1.25 * their_error
    assert their_error < 0.15 * np.abs(exact).mean()


def test_x64_changes_nothing_for_float32_weights(case_of):
    case = case_of("gemma2")
    ids = np.random.default_rng(2).integers(3, case.config.vocab_size, (2, 20))
    mask = np.ones_like(ids)
    mask[1, :7] = 0
    expected = np.asarray(scores(case.params, case.config, ids, mask))
    tokens = generate(case.params, case.config, ids, mask, max_new_tokens=40, eos_token_ids=())
    with jax.enable_x64(True):
        params, config = load_decoder(case.folder)
        actual = scores(params, config, ids, mask)
        assert actual.dtype == np.float32
        assert jax.eval_shape(lambda: loss(params, config, ids, ids, mask)).dtype == np.float32
        again = generate(params, config, ids, mask, max_new_tokens=40, eos_token_ids=())
    np.testing.assert_array_equal(again, tokens)
    assert np.abs(np.asarray(actual) - expected).max() < TOLERANCE * np.abs(expected).max()


def test_float64_is_float64(case_of):
    """A derivative by central differences, of which float32 has only two digits, tells the dtype of all arithmetic."""
    case = case_of("gemma2")
    rng = np.random.default_rng(3)
    ids, name = rng.integers(3, case.config.vocab_size, (2, 12)), "self_attn.q_proj.weight"
    with jax.enable_x64(True):
        params, config = load_decoder(case.folder, dtype="float64")
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float64"}

        def loss_of(weight):
            return loss(params | {"layers": params["layers"] | {name: weight}}, config, ids, ids)

        differentiate = jax.jit(jax.value_and_grad(loss_of), compiler_options=QUICK)
        weight, step = params["layers"][name], 1e-6
        direction = rng.normal(size=weight.shape)
        gradient = np.asarray(differentiate(weight)[1])
        ahead, behind = (float(differentiate(weight + sign * step * direction)[0]) for sign in (1, -1))
    expected = float((gradient * direction).sum())
    assert abs(expected) > 1e-3
    assert (ahead - behind) / (2 * step) == pytest.approx(expected, rel=1e-6)


def test_float16_weights_are_near_to_float32(case_of):
    case = case_of("llama3")
    params, config = load_decoder(case.folder, dtype="float16")
    ids = np.random.default_rng(5).integers(3, config.vocab_size, (2, 30))
    actual, expected = scores(params, config, ids), np.asarray(scores(case.params, case.config, ids))
    assert actual.dtype == np.float16
    assert np.abs(np.asarray(actual, np.float32) - expected).mean() < 0.01 * np.abs(expected).mean()

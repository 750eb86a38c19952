"""Products of 16-bit operands: each result is rounded once, no operand is widened, frozen weights change nothing."""

import re

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="pip install 'crma[jax]'")

import jax.numpy as jnp

from backends.jax.backend import COMPILER_OPTIONS as QUICK
from backends.jax.decoder import load_decoder, logits, loss
from backends.jax.decoder.products import FrozenWeight, linear
from backends.jax.decoder.weights import read_layers
from backends.jax.lora import decoder_lora, init_lora, target_projections

HALF_AN_ULP = 2.0**-8  # of bfloat16, relative to the number that is rounded


def drawn(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)


def wide(array):
    return np.asarray(array.astype(jnp.float32), np.float64)


def frozen(weight):
    return FrozenWeight(jax.lax.bitcast_convert_type(weight, jnp.uint16), weight.dtype)


def assert_rounded_once(actual, exact):
    assert actual.dtype == jnp.bfloat16
    room = 1e-5 * np.abs(exact).max()  # sums in float32
    assert (np.abs(wide(actual) - exact) <= HALF_AN_ULP * np.abs(exact) + room).all()


@pytest.mark.parametrize("kind", [lambda weight: weight, frozen], ids=["trained", "frozen"])
def test_a_product_and_its_gradients_are_rounded_once(kind):
    rng = np.random.default_rng(0)
    x, weight, upstream = drawn(rng, 3, 70, 300), drawn(rng, 150, 300), drawn(rng, 3, 70, 150)
    y, pull_back = jax.vjp(lambda x: linear(x, kind(weight)), x)
    assert_rounded_once(y, wide(x) @ wide(weight).T)
    assert_rounded_once(pull_back(upstream)[0], wide(upstream) @ wide(weight))


def test_the_gradient_of_a_trained_weight_is_rounded_once():
    rng = np.random.default_rng(1)
    x, weight, upstream = drawn(rng, 3, 70, 30), drawn(rng, 50, 30), drawn(rng, 3, 70, 50)
    (gradient,) = jax.vjp(lambda weight: linear(x, weight), weight)[1](upstream)
    assert_rounded_once(gradient, np.einsum("bto,bti->oi", wide(upstream), wide(x)))


@pytest.mark.parametrize("kind", [lambda weight: weight, frozen], ids=["trained", "frozen"])
def test_the_derivative_of_a_gradient_is_that_of_the_formula(kind):
    """Of ``sum (x W^T)^3 / 3``: its Hessian times a direction is ``(2 y (direction W^T)) W``."""
    rng = np.random.default_rng(2)
    x, weight, direction = drawn(rng, 5, 12), drawn(rng, 9, 12), drawn(rng, 5, 12)

    def slope(x):
        gradient = jax.grad(lambda x: (linear(x, kind(weight)).astype(jnp.float32) ** 3).sum() / 3)(x)
        return (gradient.astype(jnp.float32) * direction.astype(jnp.float32)).sum()

    exact = (2 * (wide(x) @ wide(weight).T) * (wide(direction) @ wide(weight).T)) @ wide(weight)
    assert np.abs(wide(jax.grad(slope)(x)) - exact).max() < 0.03 * np.abs(exact).max()


def test_jax_refuses_the_gradient_of_a_frozen_weight():
    rng = np.random.default_rng(3)
    x, weight = drawn(rng, 4, 6), frozen(drawn(rng, 5, 6))
    with pytest.raises(TypeError, match="uint16"):
        jax.grad(lambda weight: linear(x, weight).astype(jnp.float32).sum())(weight)


def mixed_loss(case, **loaded):
    """The loss in mixed precision as a function of LoRA's factors, and these."""
    params, config = load_decoder(case.folder, dtype="float32", **loaded)
    rng = np.random.default_rng(4)
    lora = init_lora(config, target_projections(config, "all-linear"), 2, rng)
    lora = jax.tree.map(lambda factor: jnp.asarray(0.1 * rng.standard_normal(factor.shape), jnp.float32), lora)
    ids = rng.integers(3, config.vocab_size, (2, 12))

    def of(lora):
        return loss(params, config, ids, ids, lora=decoder_lora(lora, 2.0), matmul_dtype=jnp.bfloat16)

    return of, lora, params


@pytest.mark.parametrize("name", ["llama3", "phi3"])  # a tied head, and one of its own
def test_weights_kept_in_16_bits_give_the_same_numbers(case_of, name):
    case = case_of(name)
    results = []
    for loaded in ({}, {"matmul_dtype": "bfloat16"}):
        of, lora, params = mixed_loss(case, **loaded)
        results.append(jax.jit(jax.value_and_grad(of), compiler_options=QUICK)(lora))
    assert params["head"].dtype == jnp.bfloat16
    assert params["embedding"].dtype == params["norm"].dtype == jnp.float32
    assert params["layers"]["self_attn.o_proj.weight"].bits.dtype == np.uint16
    (value, gradients), (kept_value, kept_gradients) = results
    assert float(kept_value) == float(value)
    for kept, gradient in zip(jax.tree.leaves(kept_gradients), jax.tree.leaves(gradients), strict=True):
        assert np.abs(gradient).max() > 0
        np.testing.assert_array_equal(kept, gradient)


def test_a_step_widens_no_operand(case_of):
    """What XLA is given multiplies each weight in 16 bits, for a float32 result."""
    of, lora, _ = mixed_loss(case_of("llama"), matmul_dtype="bfloat16")
    text = jax.jit(jax.grad(of)).lower(lora).as_text()
    products = re.findall(r"dot_general .*: \(tensor<(\S+)>, tensor<(\d+x\d+x(?:bf16|f32))>\) -> tensor<(\S+)>", text)
    assert products
    assert {tuple(kind.rpartition("x")[2] for kind in types) for types in products} == {("bf16", "bf16", "f32")}


def test_a_step_multiplies_no_weight_twice(case_of):
    """What XLA makes of it has as many products of the width of gate and up as the formulas.

    That is: gate, up, LoRA's part of each, and in the backward pass those of ``down_proj`` and of its LoRA.
    """
    case = case_of("llama")
    of, lora, _ = mixed_loss(case, matmul_dtype="bfloat16")
    text = jax.jit(jax.grad(of), compiler_options=QUICK).lower(lora).compile().as_text()
    assert len(re.findall(rf"= f32\[24,{case.config.intermediate_size}\]\S* dot\(", text)) == 6


def test_one_parameter_of_all_layers_is_read_from_the_files(case_of):
    case = case_of("llama")
    read = read_layers(case.folder, case.config, "mlp.down_proj.weight", "float32")
    np.testing.assert_array_equal(read, case.params["layers"]["mlp.down_proj.weight"])


def test_float32_scores_do_not_depend_on_it(case_of):
    """A weight kept in 16 bits is multiplied in float32 where nothing else was asked for."""
    case = case_of("llama")
    params, config = load_decoder(case.folder, dtype="float32", matmul_dtype="bfloat16")
    ids = np.random.default_rng(5).integers(3, config.vocab_size, (2, 9))
    rounded = case.params | {
        "layers": {
            name: weight.astype(jnp.bfloat16).astype(jnp.float32) if name.endswith("_proj.weight") else weight
            for name, weight in case.params["layers"].items()
        },
        "head": case.params["head"].astype(jnp.bfloat16).astype(jnp.float32),
    }
    run = jax.jit(logits, compiler_options=QUICK)
    np.testing.assert_allclose(run(params, config, ids), run(rounded, config, ids), rtol=1e-4, atol=1e-5)

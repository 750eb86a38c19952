"""The kernels over tokens against the float64 reference, on sizes that fill no block, and inside JAX's machinery."""

from functools import partial
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp

import reference
from backends.jax import adapter_forward, residual_mixing
from backends.jax.backend import COMPILER_OPTIONS as QUICK
from backends.jax.kernels import residual_mixing as kernels
from backends.jax.kernels import token_launch
from reference.errors import ConfigError

EPS = 2.0**-23
SIZES = [((5,), 19, 3, 2), ((2, 3), 40, 1, 1), ((530,), 33, 3, 5), ((2, 1, 3), 131, 5, 7), ((3,), 512, 64, 8)]


def draw(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def inputs(leading: tuple[int, ...], d: int, n: int, rank: int) -> list[Any]:
    """x, S, gamma and A."""
    return [draw(*leading, d), draw(n, n, seed=1), np.float32(0.5), draw(n, rank, d, seed=2) / np.float32(d**0.5)]


def traced_anew() -> Any:
    """The function from (inputs, cotangent) to y and the gradients, without what was compiled for other blocks."""

    def both(values: list[Any], cotangent: Any) -> Any:
        y, pull = jax.vjp(partial(adapter_forward, iterations=2, kernels="pallas"), *values)
        return y, *pull(cotangent)

    return jax.jit(both, compiler_options=QUICK)


value_and_gradients = traced_anew()


def assert_agree(values: list[Any], cotangent: Any, function: Any = value_and_gradients) -> None:
    """The cotangent goes half along y - x: the gradient of the gate, a single sum, then cannot cancel to nothing."""
    x, *rest = values
    parameters = reference.AdapterParameters(*rest)
    expected_y = reference.adapter_forward(x, parameters, 2)
    cotangent = cotangent + np.sign(expected_y - x).astype(np.float32)
    y, *gradients = function(values, cotangent)
    assert np.abs(expected_y - x).max() > 0.1 or len(rest[0]) == 1
    np.testing.assert_allclose(y, expected_y, rtol=0, atol=2e-6)
    for value, gradient in zip(gradients, reference.adapter_vjp(x, parameters, cotangent, 2), strict=True):
        assert value.shape == gradient.shape
        assert gradient.any() or len(rest[0]) == 1
        assert np.abs(value - gradient).max() <= 2e-5 * np.abs(gradient).max()


@pytest.mark.clause("MIX-2", "MIX-3", "GRAD-4", "GRAD-5", "GRAD-6", "GRAD-7")
@pytest.mark.parametrize(("leading", "d", "n", "rank"), SIZES)
def test_agrees_with_the_reference(leading: tuple[int, ...], d: int, n: int, rank: int) -> None:
    values = inputs(leading, d, n, rank)
    assert_agree(values, draw(*leading, d, seed=3))


@pytest.mark.clause("MIX-2", "GRAD-5", "GRAD-7", "BACK-3")
def test_agrees_in_many_blocks_and_with_the_same_bits_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 tokens and 16 places at a time, three parts of sums; no edge is a block's. No other test has the shape."""
    blocks = token_launch.Blocks(block=16, places=16, width=16, length=48, splits=3, steps=4)
    monkeypatch.setattr(token_launch, "blocks_for", lambda *sizes: blocks)
    values, cotangent = inputs((161,), 40, 5, 3), draw(161, 40, seed=3)
    function = traced_anew()
    assert_agree(values, cotangent, function)
    first, second = (function(values, cotangent) for _ in range(2))
    for left, right in zip(first, second, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.clause("MIX-1", "BACK-3")
@pytest.mark.parametrize("interpret", [True, False])
def test_blocks_cover_everything_and_are_powers_of_two(interpret: bool) -> None:
    for tokens, d, width in ((1, 4, 4), (17, 19, 6), (5000, 576, 16), (4096, 4096, 512), (100_000, 2304, 100)):
        blocks = token_launch.blocks_for(tokens, d, width, interpret)
        assert tokens <= blocks.tokens < tokens + blocks.block * blocks.steps
        assert d <= blocks.length < d + blocks.places
        assert width <= blocks.width
        assert all(size >= 16 and size & (size - 1) == 0 for size in (blocks.block, blocks.places, blocks.width))


@pytest.mark.clause("MIX-10")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_other_dtypes_are_float32_inside_and_rounded_once(dtype: Any) -> None:
    x, *parameters = inputs((6,), 19, 3, 2)
    x, cotangent = jnp.asarray(x, dtype), jnp.asarray(draw(6, 19, seed=3), dtype)
    narrow = value_and_gradients([x, *parameters], cotangent)
    wide = value_and_gradients([x.astype(jnp.float32), *parameters], cotangent.astype(jnp.float32))
    unit = float(jnp.finfo(dtype).eps) / 2
    for left, right in zip(narrow[:2], wide[:2], strict=True):
        assert left.dtype == dtype
        np.testing.assert_allclose(left.astype(jnp.float32), right, rtol=unit * 1.001, atol=1e-6)
    for left, right in zip(narrow[2:], wide[2:], strict=True):
        assert left.dtype == jnp.float32
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5 * np.abs(right).max())


@pytest.mark.clause("MIX-10")
def test_x_in_float64_is_float64_inside() -> None:
    with jax.enable_x64(True):
        x, *parameters = inputs((4,), 19, 3, 2)
        wide, strength = jnp.asarray(x, jnp.float64), jnp.float64(0.3)
        mixing = jnp.array([[0.2, 0.5, 0.3], [0.5, 0.1, 0.4], [0.3, 0.4, 0.3]])
        y, grad_x = (
            jax.jit(function, compiler_options=QUICK)(wide)
            for function in (
                lambda x: residual_mixing(x, mixing, strength, parameters[2], "pallas"),
                jax.grad(lambda x: (residual_mixing(x, mixing, strength, parameters[2], "pallas") * x[::-1]).sum()),
            )
        )
        basis = parameters[2].astype(np.float64)
        change = 0.3 * np.einsum("ird,ij,jre->de", basis, np.asarray(mixing) - np.eye(3), basis)
    assert y.dtype == grad_x.dtype == jnp.float64
    assert np.abs(change).max() > 1e-2
    np.testing.assert_allclose(y, x + x @ change.T, rtol=0, atol=1e-13)
    reverse = x[::-1].astype(np.float64)
    np.testing.assert_allclose(grad_x, reverse + reverse @ change + (x + x @ change.T)[::-1], rtol=0, atol=1e-12)


@pytest.mark.clause("MIX-11", "GRAD-8")
def test_a_token_that_is_not_finite_touches_no_other() -> None:
    values, cotangent = inputs((5,), 19, 3, 2), draw(5, 19, seed=3)
    clean_y, clean_x, *_ = value_and_gradients(values, cotangent)
    values[0][2, 1] = np.nan
    y, grad_x, *by_parameter = value_and_gradients(values, cotangent)
    others = np.array([0, 1, 3, 4])
    assert np.isnan(y[2]).all()
    assert not any(np.isfinite(gradient).all() for gradient in by_parameter)
    np.testing.assert_array_equal(y[others], clean_y[others])
    np.testing.assert_array_equal(grad_x, clean_x)


@pytest.mark.clause("MIX-1", "GRAD-7")
def test_no_tokens_give_zero_gradients() -> None:
    values = inputs((2, 0, 3), 19, 3, 2)
    y, grad_x, *by_parameter = value_and_gradients(values, jnp.zeros((2, 0, 3, 19)))
    assert y.shape == grad_x.shape == (2, 0, 3, 19)
    assert not any(gradient.any() for gradient in by_parameter)


@pytest.mark.clause("MIX-8")
def test_identity_and_a_closed_gate_leave_every_bit() -> None:
    x, _, _, basis = inputs((5,), 19, 3, 2)
    mix = jax.jit(partial(residual_mixing, kernels="pallas"), compiler_options=QUICK)
    np.testing.assert_array_equal(mix(x, jnp.eye(3), jnp.float32(0.3), basis), x)
    np.testing.assert_array_equal(mix(x, jnp.full((3, 3), 1 / 3), jnp.float32(0.0), basis), x)


@pytest.mark.clause("ERR-2")
def test_sizes_that_the_kernel_does_not_take_name_the_plain_one() -> None:
    for n, rank in ((65, 1), (6, 100)):
        with pytest.raises(ConfigError, match="kernels='jax'"):
            kernels.residual_mixing(*map(jnp.zeros, ((1, 600), (n, n), (), (n, rank, 600))))

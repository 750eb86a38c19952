"""Sums and quotients of the kernels against wider arithmetic."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp

from backends.jax.kernels.compensated import compensated_sum, refined


@pytest.mark.clause("SINK-5")
@pytest.mark.parametrize("n", [3, 64])
def test_sum_and_rest_have_twice_the_digits(n: int) -> None:
    rng = np.random.default_rng(n)
    values = np.concatenate([rng.random((50, n, n)), rng.random((50, n, n)) ** 20]).astype(np.float32)
    total, rest = jax.jit(compensated_sum, static_argnums=1)(values, 1)
    exact = values.astype(np.float64).sum(1, keepdims=True)
    together = np.asarray(total, np.float64) + np.asarray(rest, np.float64)
    assert np.abs(np.asarray(total, np.float64) - exact).max() > 1e-9 * n  # the rest is needed
    assert np.abs(together - exact).max() <= 2e-10 * n


@pytest.mark.clause("SINK-5")
@pytest.mark.parametrize("units_off", [-2, -1, 0, 1, 2])
def test_a_quotient_two_units_off_is_set_right(units_off: int) -> None:
    """As Triton's division may be; the result is within rounding, and half of a unit more would fail."""
    rng = np.random.default_rng(7)
    numerator = rng.random(4000).astype(np.float32)
    denominator = (1 + 63 * rng.random(4000)).astype(np.float32)
    exact = numerator.astype(np.float64) / denominator
    first = numerator / denominator
    first = (first.view(np.int32) + units_off).view(np.float32)
    quotient = np.asarray(jax.jit(refined)(first, jnp.asarray(numerator), jnp.asarray(denominator)), np.float64)
    unit = np.spacing(exact.astype(np.float32)).astype(np.float64)
    assert np.abs((quotient - exact) / unit).max() <= 0.5 + 1e-3

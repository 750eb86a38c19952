"""The projection kernels against the float64 reference, on sizes that fill no block, and inside JAX's machinery.

What must hold of plain JAX in the same words is asked of both here.
"""

from functools import partial
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp

import reference
from backends.jax import sinkhorn_projection
from backends.jax.backend import COMPILER_OPTIONS as QUICK
from backends.jax.kernels import launch
from backends.jax.kernels import sinkhorn_projection as kernels
from reference.errors import ConfigError

EPS = 2.0**-23
project = partial(sinkhorn_projection, kernels="pallas")
quick = partial(jax.jit, compiler_options=QUICK)


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Any:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


@partial(quick, static_argnums=(2, 3))
def both(logits: Any, cotangent: Any, iterations: int, kernels: Any = "pallas") -> Any:
    """M, and the gradient."""
    mixing, pull = jax.vjp(lambda s: sinkhorn_projection(s, iterations, kernels), logits)
    return mixing, pull(cotangent)[0]


def sum_error(mixing: Any) -> float:
    exact = np.asarray(mixing).astype(np.longdouble)
    return float(max(np.abs(exact.sum(axis) - 1).max() for axis in (-1, -2)))


@pytest.mark.clause("SINK-1", "SINK-3", "SINK-4", "SINK-5", "GRAD-1", "GRAD-2", "GRAD-3")
@pytest.mark.parametrize("iterations", [1, 20])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5, 3, 3), (2, 3, 4, 4), (9, 16, 16)])
def test_agrees_with_the_reference(shape: tuple[int, ...], iterations: int) -> None:
    """Within rounding, which the spread of the logits enlarges."""
    n = shape[-1]
    logits, cotangent = draw(*shape, seed=n, scale=3.0), draw(*shape, seed=n + 1)
    mixing, gradient = both(logits, cotangent, iterations)
    expected = reference.sinkhorn_projection(logits, iterations)
    expected_gradient = reference.sinkhorn_projection_vjp(logits, cotangent, iterations)
    condition = float(np.ptp(logits)) + 1
    assert mixing.dtype == gradient.dtype == jnp.float32
    assert n == 1 or np.abs(expected_gradient).max() > 0.05
    np.testing.assert_allclose(mixing, expected, rtol=0, atol=16 * EPS * condition)
    np.testing.assert_allclose(
        gradient, expected_gradient, rtol=0, atol=32 * EPS * condition * float(np.abs(cotangent).max())
    )
    assert sum_error(mixing) <= 3e-7


@pytest.mark.clause("SINK-5", "SINK-6", "SINK-7")
@pytest.mark.parametrize("n", [3, 16, 64])
def test_sums_without_float64(n: int) -> None:
    """Where roundings line up (k I), at rows of any width, and at the end of the domain."""
    rng = np.random.default_rng(n)
    lined_up = np.linspace(0.0, 29.9, 8)[:, None, None] * np.eye(n)
    sparse = 60.0 * (rng.random((8, n, n)) < 0.3)
    logits = np.concatenate([lined_up, sparse, *(draw(8, n, n, seed=n, scale=scale) for scale in (1.0, 50.0, 1e37))])
    for iterations in (1, 20):
        mixing = np.asarray(quick(lambda s, k=iterations: project(s, k))(logits))
        assert (mixing >= 0).all()
        assert sum_error(mixing) <= 3e-7
        assert np.linalg.norm(mixing.astype(np.float64), 2, axis=(-2, -1)).max() <= 1 + 3e-7


@pytest.mark.clause("SINK-3", "SINK-5", "GRAD-1")
@pytest.mark.parametrize("exponent", [8, 120])
def test_agrees_at_the_magnitudes_of_the_lattice(exponent: int) -> None:
    """Integers times 2^120 with a permutation of zeros, plus an integer per row, which the row step takes off."""
    rng = np.random.default_rng(exponent)
    zeros = np.eye(6)[rng.permutation(6)]
    integers = (1 - zeros) * rng.integers(-8, 1, (4, 6, 6)) + rng.integers(-8, 9, (4, 6, 1))
    logits, cotangent = (2.0**exponent * integers).astype(np.float32), draw(4, 6, 6)
    mixing, gradient = both(logits, cotangent, 20)
    expected = reference.sinkhorn_projection_vjp(logits, cotangent)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(mixing, reference.sinkhorn_projection(logits), rtol=0, atol=16 * EPS)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=128 * EPS)


@pytest.mark.clause("SINK-1", "BACK-3")
def test_each_matrix_is_its_own_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine matrices in one program, or in blocks of two with the last half empty: the same bits."""
    logits, cotangent = draw(9, 3, 3), draw(9, 3, 3, seed=1)

    def traced_anew() -> Any:
        return quick(lambda s, c: jax.vjp(lambda v: kernels._projection_rule(v, 3, True), s)[1](c)[0])

    programs: list[Any] = []

    def counted(*arguments: Any, grid: Any, **settings: Any) -> Any:
        programs.append(grid)
        return launch.call(*arguments, grid=grid, **settings)

    one = traced_anew()(logits, cotangent)
    monkeypatch.setattr(kernels, "INTERPRETED_ENTRIES", 32)
    monkeypatch.setattr(kernels, "call", counted)
    many = traced_anew()(logits, cotangent)
    assert programs
    assert set(programs) == {(5,)}
    np.testing.assert_array_equal(one, many)


@pytest.mark.clause("GRAD-2")
def test_first_of_equal_row_sums_takes_the_gradient() -> None:
    block = 1024.0 * np.array([[0.0, -1.0], [0.0, 0.0]], np.float32)
    logits = np.full((4, 4), -4096.0, np.float32)
    logits[:2, :2] = logits[2:, 2:] = block
    cotangent = draw(4, 4, seed=4)
    expected = reference.sinkhorn_projection_vjp(logits, cotangent, 1)
    exchange = np.ix_([2, 3, 0, 1], [2, 3, 0, 1])
    last = reference.sinkhorn_projection_vjp(logits, cotangent[exchange], 1)[exchange]
    assert np.abs(last - expected).max() > 1e-2
    np.testing.assert_allclose(both(logits, cotangent, 1)[1], expected, rtol=0, atol=1e-6)


@pytest.mark.clause("SINK-9", "GRAD-8")
@pytest.mark.parametrize("kernels", ["jax", "pallas"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_logit_spoils_its_own_matrix_alone(bad: float, kernels: str) -> None:
    logits = draw(3, 3, 3)
    logits[1, 2, 1] = bad
    for result in both(logits, draw(3, 3, 3, seed=1), 2, kernels):
        assert np.isnan(result[1]).all()
        assert np.isfinite(result[np.array([0, 2])]).all()


@pytest.mark.clause("GRAD-8")
def test_a_cotangent_that_is_not_finite_spoils_its_own_matrix() -> None:
    cotangent = draw(3, 3, 3, seed=1)
    cotangent[1, 0, 2] = np.nan
    gradient = both(draw(3, 3, 3), cotangent, 2)[1]
    assert not np.isfinite(gradient[1]).any()
    assert np.isfinite(gradient[np.array([0, 2])]).all()


@pytest.mark.clause("SINK-1", "GRAD-7")
def test_an_empty_batch() -> None:
    mixing, gradient = both(jnp.zeros((2, 0, 3, 3)), jnp.zeros((2, 0, 3, 3)), 20)
    assert mixing.shape == gradient.shape == (2, 0, 3, 3)


def test_half_precision_logits_are_taken_to_float32() -> None:
    logits = jnp.asarray(draw(9, 3, 3), jnp.bfloat16)
    mixing, gradient = both(logits, draw(9, 3, 3), 2)
    assert (mixing.dtype, gradient.dtype) == (jnp.float32, logits.dtype)
    np.testing.assert_allclose(mixing, reference.sinkhorn_projection(logits.astype(jnp.float32), 2), rtol=0, atol=2e-6)


def test_in_float64() -> None:
    with jax.enable_x64(True):
        logits, cotangent = (jnp.asarray(draw(2, 3, 3, seed=k), jnp.float64) for k in (0, 1))
        mixing, gradient = both(logits, cotangent, 4)
    assert mixing.dtype == gradient.dtype == jnp.float64
    np.testing.assert_allclose(mixing, reference.sinkhorn_projection(logits, 4), rtol=0, atol=1e-14)
    expected = reference.sinkhorn_projection_vjp(logits, cotangent, 4)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-13)


@pytest.mark.clause("SINK-1", "GRAD-1", "GRAD-7")
def test_under_vmap_scan_and_remat() -> None:
    logits, cotangent = draw(5, 2, 3, 3), draw(5, 2, 3, 3, seed=1)
    mapped = jax.vmap(jax.vmap(lambda s: project(s, 2)))
    expected, expected_gradient = both(logits, cotangent, 2)
    mixing, gradient = quick(lambda s, c: (mapped(s), jax.vjp(mapped, s)[1](c)[0]))(logits, cotangent)
    np.testing.assert_allclose(mixing, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-6)
    assert np.abs(expected_gradient).max() > 0.05

    def step(s: Any) -> Any:
        return 3.0 * project(s, 2)

    def chain(s: Any) -> Any:
        return jax.lax.scan(lambda s, _: (jax.checkpoint(step)(s), None), s, None, length=2)[0]

    by_scan, at_once = (
        quick(jax.grad(lambda s, f=f: (f(s) * cotangent[0]).sum()))(logits[0]) for f in (chain, lambda s: step(step(s)))
    )
    assert np.abs(at_once).max() > 1e-3
    np.testing.assert_allclose(by_scan, at_once, atol=1e-5)


@pytest.mark.clause("GRAD-1")
@pytest.mark.parametrize("kernels", ["jax", "pallas"])
def test_only_the_logits_are_kept_for_the_backward_pass(kernels: Any) -> None:
    logits = draw(9, 3, 3)
    kept = jax.tree.leaves(jax.vjp(lambda s: sinkhorn_projection(s, 2, kernels), logits)[1])
    assert sum(np.size(leaf) for leaf in kept) == logits.size


@pytest.mark.clause("SINK-2", "ERR-2")
def test_more_streams_than_the_kernel_takes_name_the_plain_one() -> None:
    with pytest.raises(ConfigError, match="kernels='jax'"):
        project(jnp.zeros((65, 65)))

"""The projection inside JAX's own machinery, and what the suite cannot see: both forms of the iteration, the sums.

Agreement with the reference over all sizes and magnitudes is checked by conformance/.
"""

from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp
from jax.test_util import check_grads

import reference
from backends.jax import sinkhorn_projection
from backends.jax.autodiff import plain_projection
from backends.jax.birkhoff import birkhoff_correction, column_softmax
from backends.jax.iteration import (
    SCALED_RANGE,
    logarithmic_weights,
    logarithmic_weights_vjp,
    scaled_form_holds,
    scaled_weights,
    scaled_weights_vjp,
)
from reference.errors import ConfigError, ShapeError


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Any:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def pull_back(function: Any, logits: Any, cotangent: Any) -> Any:
    return jax.vjp(function, logits)[1](cotangent)[0]


@pytest.mark.clause("SINK-3", "GRAD-1")
@pytest.mark.parametrize("spread", [1.0, 12.0, 29.0])
def test_both_forms_of_the_iteration_are_the_same_map(spread: float) -> None:
    """Up to the widest rows that the scaled form takes, and with their small entries where they are hardest."""
    rng = np.random.default_rng(3)
    drawn = spread * rng.random((60, 5, 5))
    drawn[20:40] = spread * (rng.random((20, 5, 5)) < 0.4)
    drawn[40:] = -spread * np.triu(np.ones((5, 5)), 1) * rng.random((20, 1, 1))
    with jax.enable_x64(True):
        logits, drawn_cotangent = jnp.asarray(drawn.transpose(1, 2, 0)), rng.standard_normal((5, 5, 60))
        cotangent = jnp.asarray(drawn_cotangent - drawn_cotangent.mean(axis=0))  # as after a column softmax
        assert scaled_form_holds(logits.astype(jnp.float32))
        for iterations in (1, 2, 50):
            scaled, logarithmic = (
                birkhoff_correction(column_softmax(weights(logits, iterations)))
                for weights in (scaled_weights, logarithmic_weights)
            )
            np.testing.assert_allclose(scaled, logarithmic, rtol=1e-11, atol=1e-14)
            left, right = (
                pull(logits, iterations, lambda _: cotangent) for pull in (scaled_weights_vjp, logarithmic_weights_vjp)
            )
            np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-11)


@pytest.mark.clause("SINK-5")
def test_the_scaled_form_is_left_where_it_would_overflow() -> None:
    limit = SCALED_RANGE[jnp.dtype("float32")]
    wide = jnp.zeros((2, 2, 1)).at[0, 1, 0].set(-limit - 1)
    assert not scaled_form_holds(wide)
    assert scaled_form_holds(wide / 2)
    for bad in (np.nan, np.inf, -np.inf):
        assert not scaled_form_holds(wide.at[1, 1, 0].set(bad) / 2)


@pytest.mark.clause("SINK-5", "SINK-6", "SINK-7")
@pytest.mark.parametrize("n", [2, 3, 4, 8, 11, 16, 33, 64])
def test_sums_without_float64(n: int) -> None:
    """In float32 alone, where roundings line up (k I), and at the widest rows of the scaled form; 3e-7 for every n."""
    rng = np.random.default_rng(n)
    lined_up = np.linspace(0.0, 29.9, 40)[:, None, None] * np.eye(n)
    wide = 29.9 * (rng.random((40, n, n)) < 0.3)
    for logits in (lined_up, wide, 3 * wide, draw(40, n, n, seed=n), draw(40, n, n, seed=n, scale=1e36)):
        for iterations in (1, 20):
            projected = sinkhorn_projection(jnp.asarray(logits, jnp.float32), iterations)
            assert projected.dtype == jnp.float32
            exact = np.asarray(projected).astype(np.longdouble)
            assert (exact >= 0).all()
            assert max(np.abs(exact.sum(axis) - 1).max() for axis in (-1, -2)) <= 3e-7
            assert np.linalg.norm(exact.astype(np.float64), 2, axis=(-2, -1)).max() <= 1 + 3e-7


@pytest.mark.clause("GRAD-1", "GRAD-2")
@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_gradient_in_float64(scale: float) -> None:
    with jax.enable_x64(True):
        logits = jnp.asarray(draw(3, 4, 4, seed=2, scale=scale), jnp.float64)
        check_grads(lambda s: sinkhorn_projection(s, 3), (logits,), order=1, modes=["rev"], rtol=1e-5, atol=1e-7)
        gradient = pull_back(sinkhorn_projection, logits, jnp.cos(logits))
        expected = reference.sinkhorn_projection_vjp(logits, jnp.cos(logits))
    assert gradient.dtype == jnp.float64
    np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-12)
    assert jnp.zeros(1).dtype == jnp.float32


@pytest.mark.clause("SINK-1", "GRAD-7")
def test_vmap_is_the_batch_and_branches_once() -> None:
    logits, cotangent = draw(5, 2, 4, 4), draw(5, 2, 4, 4, seed=1)
    mapped = jax.vmap(jax.vmap(sinkhorn_projection))
    np.testing.assert_array_equal(mapped(logits), sinkhorn_projection(logits))
    np.testing.assert_array_equal(
        pull_back(mapped, logits, cotangent), pull_back(sinkhorn_projection, logits, cotangent)
    )
    compiled = jax.jit(mapped).lower(logits).compile().as_text()
    assert "conditional(" in compiled  # a mapped predicate would have run both branches
    one = jax.vmap(lambda c: pull_back(sinkhorn_projection, logits[0, 0], c))(cotangent[:, 0])  # logits not mapped
    expected = pull_back(sinkhorn_projection, jnp.broadcast_to(logits[0, 0], (5, 4, 4)), cotangent[:, 0])
    np.testing.assert_array_equal(one, expected)


@pytest.mark.clause("GRAD-1")
def test_inside_scan_and_remat() -> None:
    """A chain of projections: each step's logits come from the matrix before it."""

    def chain(step: Any, logits: Any) -> Any:
        return jax.lax.scan(lambda s, _: (step(s), None), logits, None, length=3)[0]

    def step(s: Any) -> Any:
        return 3.0 * sinkhorn_projection(s, 4)

    logits, cotangent = draw(4, 4), draw(4, 4, seed=1)
    once = step(step(step(logits)))
    np.testing.assert_allclose(chain(step, logits), once, atol=1e-6)
    expected = pull_back(lambda s: step(step(step(s))), logits, cotangent)
    for function in (step, jax.checkpoint(step)):
        np.testing.assert_allclose(pull_back(lambda s, f=function: chain(f, s), logits, cotangent), expected, atol=1e-5)
    assert np.abs(expected).max() > 1e-3


def test_forward_mode_is_refused_and_the_plain_twin_has_it() -> None:
    logits, direction = draw(3, 4, 4), draw(3, 4, 4, seed=1)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(sinkhorn_projection, (logits,), (direction,))
    projected, tangent = jax.jvp(plain_projection, (logits,), (direction,))
    np.testing.assert_allclose(projected, sinkhorn_projection(logits), atol=1e-6)
    cotangent = draw(3, 4, 4, seed=2)
    by_reverse = (np.asarray(pull_back(sinkhorn_projection, logits, cotangent)) * direction).sum()
    np.testing.assert_allclose((np.asarray(tangent) * cotangent).sum(), by_reverse, rtol=1e-4)
    assert np.isfinite(jax.hessian(lambda s: plain_projection(s)[0, 0])(logits[0])).all()


@pytest.mark.clause("SINK-1", "SINK-2", "ERR-2")
def test_mistakes_are_named() -> None:
    with pytest.raises(ShapeError, match=r"mix_logits: got \(3, 4\)"):
        sinkhorn_projection(jnp.zeros((3, 4)))
    with pytest.raises(ConfigError, match="iterations: got 0"):
        sinkhorn_projection(jnp.zeros((3, 3)), 0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_logits_are_taken_to_float32(dtype: str) -> None:
    logits = jnp.asarray(draw(2, 3, 3), dtype)
    projected, pull = jax.vjp(sinkhorn_projection, logits)
    assert projected.dtype == jnp.float32
    np.testing.assert_array_equal(projected, sinkhorn_projection(logits.astype(jnp.float32)))
    assert pull(projected)[0].dtype == logits.dtype

"""Sinkhorn projections in JAX to be timed on the same logits, each under ``jax.jit``.

``scan`` is this project's map in logarithms with JAX's own derivative. ``maxtext`` is the formula of MaxText's
hyper-connections, which is DeepSeek's: a softmax over rows, then sums divided out with an epsilon added to each.
``ott`` is optimal transport with the cost -S and entropy 1 by ott-jax, to its default threshold. The last two have no
Birkhoff correction, so they compute another matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from backends.jax import sinkhorn_projection
from bench.projections import ITERATIONS, package

JaxProjection = Callable[[Array], Array]
EPSILON = 1e-6


def _crma() -> JaxProjection:
    return lambda logits: sinkhorn_projection(logits, ITERATIONS)


def _scan() -> JaxProjection:
    def project(logits: Array) -> Array:
        start = logits - logits.max((-2, -1), keepdims=True)

        def step(log_matrix: Array, _: None) -> tuple[Array, None]:
            return jax.nn.log_softmax(jax.nn.log_softmax(log_matrix, -1), -2), None

        log_matrix, _ = lax.scan(step, start, None, length=ITERATIONS - 1)
        plain = jax.nn.softmax(jax.nn.log_softmax(log_matrix, -1), -2)
        row_sums = plain.sum(-1, keepdims=True)
        largest = row_sums.max(-2, keepdims=True)
        return plain / largest + (1 - row_sums / largest) / plain.shape[-1]

    return project


def _maxtext() -> JaxProjection:
    def project(logits: Array) -> Array:
        matrix = jax.nn.softmax(logits, -1) + EPSILON
        matrix = matrix / (matrix.sum(-2, keepdims=True) + EPSILON)
        for _ in range(ITERATIONS - 1):
            matrix = matrix / (matrix.sum(-1, keepdims=True) + EPSILON)
            matrix = matrix / (matrix.sum(-2, keepdims=True) + EPSILON)
        return matrix

    return project


def _ott() -> JaxProjection:
    linear = package("ott.solvers.linear", "ott-jax lineax equinox jaxtyping wadler-lindig")
    geometry = package("ott.geometry.geometry", "ott-jax")

    def one(logits: Array) -> Array:
        ones = jnp.ones(len(logits))
        cost = geometry.Geometry(cost_matrix=-logits, epsilon=1.0)
        plan: Array = linear.solve(cost, a=ones, b=ones).matrix
        return plan

    return jax.vmap(one)


JAX_PROJECTIONS: dict[str, Callable[[], JaxProjection]] = {
    "crma": _crma,
    "scan": _scan,
    "maxtext": _maxtext,
    "ott": _ott,
}

"""The Pallas kernels of the Sinkhorn projection: a program holds a block of matrices, padded from n to N.

The steps are the logarithmic ones, for every finite S. Each matrix is padded by a block of its own, zeros inside and
-inf beside it: a step then needs no mask and makes no NaN.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from backends.jax.kernels.birkhoff import birkhoff_correction, birkhoff_correction_vjp, index
from backends.jax.kernels.compensated import compensated_sum, quotient
from backends.jax.kernels.launch import pl, plgpu

COLUMNS, ROWS = 1, 2  # the axis that a column step, or a row step, sums over


class Task(NamedTuple):
    """What a program knows besides its arrays."""

    batch: int
    n: int
    iterations: int
    interpret: bool


def forward_kernel(logits_ref: Any, mixing_ref: Any, *, task: Task) -> None:
    inside, is_finite, x = _start(logits_ref, task)
    x = lax.fori_loop(0, task.iterations - 1, lambda _, x: _step(_step(x, ROWS)[0], COLUMNS)[0], x)
    mixing = birkhoff_correction(_last_softmax(_step(x, ROWS)[0]), task.n)
    plgpu.store(mixing_ref, jnp.where(is_finite, mixing, jnp.nan), mask=inside)


def backward_kernel(logits_ref: Any, upstream_ref: Any, grad_ref: Any, softmax_ref: Any, *, task: Task) -> None:
    """``softmax_ref``: scratch (2K - 2, block, N, N), the softmax of each step but the last two. Clauses: GRAD-1..3."""
    inside, is_finite, x = _start(logits_ref, task)

    def forwards(k: Array, x: Array) -> Array:
        x, softmax_ref[2 * k] = _step(x, ROWS)
        x, softmax_ref[2 * k + 1] = _step(x, COLUMNS)
        return x

    def backwards(k: Array, grad: Array) -> Array:
        earlier = 2 * (task.iterations - 2 - k)
        grad = grad - softmax_ref[earlier + 1] * grad.sum(COLUMNS, keepdims=True)
        return grad - softmax_ref[earlier] * grad.sum(ROWS, keepdims=True)

    x, last_rows = _step(lax.fori_loop(0, task.iterations - 1, forwards, x), ROWS)
    plain = _last_softmax(x)
    grad = birkhoff_correction_vjp(plain, plgpu.load(upstream_ref, mask=inside, other=0.0), task.n)
    grad = plain * (grad - (plain * grad).sum(COLUMNS, keepdims=True))
    grad = grad - last_rows * grad.sum(ROWS, keepdims=True)
    if not task.interpret:
        plgpu.debug_barrier()  # what one thread stored another may load
    grad = lax.fori_loop(0, task.iterations - 1, backwards, grad)
    plgpu.store(grad_ref, jnp.where(is_finite, grad, jnp.nan), mask=inside)


def _start(logits_ref: Any, task: Task) -> tuple[Array, Array, Array]:
    """Which entries of the block are in the batch; whether a matrix is finite, (block, 1, 1); X, shifted and padded."""
    shape = logits_ref.shape
    is_row, is_column = index(shape, 1) < task.n, index(shape, 2) < task.n
    square = is_row & is_column
    inside = square & (pl.program_id(0) * shape[0] + index(shape, 0) < task.batch)
    logits = plgpu.load(logits_ref, mask=inside, other=0.0)
    # Counted, since Triton's maximum hides NaN, and -inf alone would give finite values (SINK-9).
    is_bad = jnp.where(jnp.abs(logits) < jnp.inf, 0, 1)
    bad = _max(_max(is_bad, ROWS), COLUMNS)
    logits = jnp.where(is_bad == 0, logits, 0.0)
    largest = _max(_max(jnp.where(square, logits, -jnp.inf), ROWS), COLUMNS)
    padding = jnp.where(is_row | is_column, -jnp.inf, 0.0)
    return inside, bad == 0, jnp.where(square, logits - largest, padding)


def _step(x: Array, axis: int) -> tuple[Array, Array]:
    """``X - log sum exp X``, and its exp, as a quotient: one exp less, and it sums to 1. Clause: SINK-3."""
    x = x - _max(x, axis)
    weights = jnp.exp(x)
    total = weights.sum(axis, keepdims=True)
    return x - jnp.log(total), weights / total


def _last_softmax(x: Array) -> Array:
    weights = jnp.exp(x - _max(x, COLUMNS))
    return quotient(weights, compensated_sum(weights, COLUMNS)[0])


def _max(values: Array, axis: int) -> Array:
    return values.max(axis, keepdims=True)

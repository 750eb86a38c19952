"""The Birkhoff correction inside a kernel, of a block of matrices (block, N, N) padded from n to N.

As :mod:`backends.jax.birkhoff`, with padded rows left out.
"""

import jax.numpy as jnp
from jax import Array, lax

from backends.jax.kernels.compensated import compensated_sum, quotient


def birkhoff_correction(plain: Array, n: int) -> Array:
    """``M = P / m + (1 - rho / m) 1^T / n``, rho the row sums and m the largest. Clauses: SINK-4, SINK-5, SINK-7."""
    row_sums, rests = compensated_sum(plain, 2)
    is_largest, largest = _largest(row_sums, n)
    largest_rest = jnp.where(is_largest, rests, -jnp.inf).max(1, keepdims=True)
    missing = (largest - row_sums) + (largest_rest - rests)  # m - rho >= 0, to the last digit
    return quotient(plain, largest) + quotient(missing, n * largest)


def birkhoff_correction_vjp(plain: Array, grad_mixing: Array, n: int) -> Array:
    """dL/dP; the cotangent is 0 in padding. The first of the largest row sums takes the subgradient. Clause: GRAD-2."""
    row_sums, _ = compensated_sum(plain, 2)
    is_largest, largest = _largest(row_sums, n)
    row = index(row_sums.shape, 1)
    is_first = row == -jnp.where(is_largest, -row, -n).max(1, keepdims=True)
    row_grad = grad_mixing.sum(2, keepdims=True) / n
    per_row = (grad_mixing * plain).sum(2, keepdims=True) - row_sums * row_grad
    grad_largest = -per_row.sum(1, keepdims=True) / (largest * largest)
    return (grad_mixing - row_grad) / largest + jnp.where(is_first, grad_largest, 0.0)


def index(shape: tuple[int, ...], axis: int) -> Array:
    return lax.broadcasted_iota(jnp.int32, shape, axis)


def _largest(row_sums: Array, n: int) -> tuple[Array, Array]:
    """Which rows have the largest sum, and that sum; padded rows do not count."""
    row_sums = jnp.where(index(row_sums.shape, 1) < n, row_sums, 0.0)
    largest = row_sums.max(1, keepdims=True)
    return row_sums == largest, largest

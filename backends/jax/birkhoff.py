"""The end of the projection: the last column softmax and the Birkhoff correction, with compensated sums.

Float32 sums of 16 numbers miss SINK-5, and JAX has no float64 unless x64 is on. So the two sums that decide whether
rows and columns of M add up to 1 are carried in two floats. What is left is one rounding each of a column's sum, of
P, of P / m and of M, relative to numbers that add up to 1: at most 3e-7 for every n. Source: two-sum, Knuth 1969.

Matrices lie (n, n, batch) here and in the modules of the iteration: one step is then one vectorised loop.
"""

import jax.numpy as jnp
from jax import Array

from backends.jax.reductions import FIRST, SECOND, max_over, reduce_over, sum_over


def column_softmax(weights: Array) -> Array:
    """P = weights / their column sums; weights (n, n, batch), not negative. Clauses: SINK-3, SINK-5."""
    return weights / _compensated_sum(weights, FIRST)[0]


def column_softmax_vjp(plain: Array, grad_plain: Array) -> Array:
    """dL/dX for ``P = softmax(X)`` over columns. Clause: GRAD-1."""
    return plain * (grad_plain - sum_over(plain * grad_plain, FIRST))


def birkhoff_correction(plain: Array) -> Array:
    """``M = P / m + (1 - rho / m) 1^T / n``, rho the row sums and m the largest. Clauses: SINK-4, SINK-5, SINK-7."""
    n = len(plain)
    row_sums, row_rests = _compensated_sum(plain, SECOND)
    largest = max_over(row_sums, FIRST)
    largest_rest = max_over(jnp.where(row_sums == largest, row_rests, -jnp.inf), FIRST)
    # m - rho >= 0, to the last digit; a rest that was rounded must not make it less (SINK-7)
    missing = jnp.maximum((largest - row_sums) + (largest_rest - row_rests), 0)
    return plain / largest + missing / (n * largest)


def birkhoff_correction_vjp(plain: Array, grad_mixing: Array) -> Array:
    """dL/dP. The largest row sum takes the subgradient of its first argmax. Clause: GRAD-2."""
    n = len(plain)
    row_sums = _compensated_sum(plain, SECOND)[0]
    largest = max_over(row_sums, FIRST)
    index = jnp.arange(n)[:, None, None]
    is_first_argmax = index == -max_over(jnp.where(row_sums == largest, -index, -n), FIRST)
    row_grad = sum_over(grad_mixing, SECOND)
    per_row = sum_over(grad_mixing * plain, SECOND) - row_sums * row_grad / n
    grad_largest = -sum_over(per_row, FIRST) / largest**2
    return (grad_mixing - row_grad / n) / largest + is_first_argmax.astype(grad_largest.dtype) * grad_largest


def _compensated_sum(values: Array, axis: int) -> tuple[Array, Array]:
    """The sum over ``axis`` (which stays, with length 1) as a float and the rest that it leaves out."""

    def two_sum(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        (first, first_rest), (second, second_rest) = left, right
        total = first + second
        seen = total - first
        return total, (first - (total - seen)) + (second - seen) + (first_rest + second_rest)

    high, low = reduce_over(two_sum, (values, jnp.zeros_like(values)), axis)
    total = high + low
    return total, low - (total - high)

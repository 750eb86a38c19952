"""The K row and column steps of Sinkhorn, forwards and backwards, in two forms of the same map.

*Scaled*: with E = exp(S - the maximum of its row) the steps only multiply rows by u and columns by v,
``u = 1 / (E v)``, ``v = 1 / (E^T u)``: no exponential and no logarithm inside the loop. It holds as long as E and its
scales stay in range, that is where every row of S spans less than SCALED_RANGE.

*Logarithmic*: ``X <- X - log sum exp X`` as the specification writes it, for every finite S. A matrix with a logit
that is not finite becomes NaN throughout.

Both give the weights of the last column step, to be divided by their column sums, and both gradients are the exact
derivative of the K steps, found by running them again: nothing but S is kept between the two passes. Matrices lie (n,
n, batch). Clauses: SINK-3, SINK-9, GRAD-1, GRAD-3.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from backends.jax.reductions import FIRST, SECOND, max_over, sum_over

#: float32 -> the range of a row up to which products of E, u and v neither overflow nor vanish; float64 -> the same
SCALED_RANGE = {jnp.dtype("float32"): 30.0, jnp.dtype("float64"): 300.0}

#: what a reverse pass is given: from the weights of the last column step to dL/dX before it
Upstream = Callable[[Array], Array]


def scaled_form_holds(logits: Array) -> Array:
    """Whether every row of every matrix spans little enough; False where a logit is not finite."""
    spans = max_over(logits, SECOND) + max_over(-logits, SECOND)
    return jnp.all(spans <= SCALED_RANGE[logits.dtype])  # NaN compares as False


def scaled_weights(logits: Array, iterations: int) -> Array:
    exponentials = _exponentials(logits)

    def step(columns: Array, _: None) -> tuple[Array, None]:
        return _column_scales(exponentials, _row_scales(exponentials, columns)), None

    columns, _ = lax.scan(step, jnp.ones_like(logits[:1]), None, length=iterations - 1)
    return exponentials * _row_scales(exponentials, columns)


def scaled_weights_vjp(logits: Array, iterations: int, upstream: Upstream) -> Array:
    exponentials = _exponentials(logits)

    def step(columns: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        rows = _row_scales(exponentials, columns)
        return _column_scales(exponentials, rows), (columns, rows)

    def step_back(carry: tuple[Array, Array], scales: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        # Every step leaves sums of zero along its own axis, and takes away E times a column times a row. So vectors
        # suffice: the scaled sums that the next step needs, and what was taken, gathered without its factor E.
        taken, by_column = carry
        before, rows = scales
        by_row = -rows * (rows * sum_over(exponentials * by_column, SECOND))
        taken = taken + rows * by_column + by_row * before
        return (taken, -before * (before * sum_over(exponentials * by_row, FIRST))), None

    columns, history = lax.scan(step, jnp.ones_like(logits[:1]), None, length=iterations - 1)
    rows = _row_scales(exponentials, columns)
    grad = upstream(exponentials * rows)
    by_row = rows * sum_over(grad, SECOND)
    by_column = -columns * (columns * sum_over(exponentials * by_row, FIRST))
    (taken, _), _ = lax.scan(step_back, (by_row * columns, by_column), history, reverse=True)
    return grad - exponentials * taken


def logarithmic_weights(logits: Array, iterations: int) -> Array:
    def step(log_matrix: Array, _: None) -> tuple[Array, None]:
        return _log_softmax(_log_softmax(log_matrix, SECOND), FIRST), None

    log_matrix, _ = lax.scan(step, _shifted(logits), None, length=iterations - 1)
    return _column_weights(_log_softmax(log_matrix, SECOND))


def logarithmic_weights_vjp(logits: Array, iterations: int, upstream: Upstream) -> Array:
    def step(log_matrix: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        after_rows = _log_softmax(log_matrix, SECOND)
        after_columns = _log_softmax(after_rows, FIRST)
        return after_columns, (after_rows, after_columns)

    def step_back(grad: Array, iterates: tuple[Array, Array]) -> tuple[Array, None]:
        after_rows, after_columns = iterates
        return _log_softmax_vjp(after_rows, _log_softmax_vjp(after_columns, grad, FIRST), SECOND), None

    log_matrix, history = lax.scan(step, _shifted(logits), None, length=iterations - 1)
    last = _log_softmax(log_matrix, SECOND)
    grad = _log_softmax_vjp(last, upstream(_column_weights(last)), SECOND)
    return lax.scan(step_back, grad, history, reverse=True)[0]


def _exponentials(logits: Array) -> Array:
    return jnp.exp(logits - max_over(logits, SECOND))


def _row_scales(exponentials: Array, columns: Array) -> Array:
    return 1 / sum_over(exponentials * columns, SECOND)


def _column_scales(exponentials: Array, rows: Array) -> Array:
    return 1 / sum_over(exponentials * rows, FIRST)


def _shifted(logits: Array) -> Array:
    # Zero, or NaN for the whole matrix if one logit is not finite: -inf alone would give finite values (SINK-9).
    poison = sum_over(sum_over(logits * 0, SECOND), FIRST)
    return logits - max_over(max_over(logits, SECOND), FIRST) + poison


def _column_weights(log_matrix: Array) -> Array:
    return jnp.exp(log_matrix - max_over(log_matrix, FIRST))


def _log_softmax(log_matrix: Array, axis: int) -> Array:
    shifted = log_matrix - max_over(log_matrix, axis)
    return shifted - jnp.log(sum_over(jnp.exp(shifted), axis))


def _log_softmax_vjp(log_matrix: Array, grad: Array, axis: int) -> Array:
    return grad - jnp.exp(log_matrix) * grad.sum(axis, keepdims=True)

"""Sinkhorn projection of logits onto the Birkhoff polytope, and its vector-Jacobian product."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reference.dtypes import as_float64
from reference.errors import ConfigError, NonFiniteError, ShapeError

Array = NDArray[np.float64]
ROW, COLUMN = -1, -2  # the axis a step sums over: a row is summed over its columns, and the other way round


class _Trace(NamedTuple):
    """What the reverse pass needs: the log-matrix after each half step, and the last column softmax P."""

    log_iterates: list[Array]
    plain: Array


def sinkhorn_projection(mix_logits: ArrayLike, iterations: int = 20) -> Array:
    """Project each matrix of logits onto the Birkhoff polytope.

    ``X <- S - max S``; ``iterations`` times: rows, then columns, of X are log-normalised; the last column step is a
    softmax and gives P, whose columns sum to 1. With row sums ``rho`` and ``m = max rho`` the Birkhoff correction
    ``M = P / m + (1 - rho / m) 1^T / n`` makes rows and columns sum to 1 for every finite S.

    Args:
        mix_logits: S, shape (..., n, n), finite.
        iterations: K >= 1.

    Returns:
        M, shape (..., n, n), float64, doubly stochastic.

    Raises:
        ShapeError: the last two axes are not square, or empty.
        ConfigError: ``iterations`` is not an integer >= 1.
        NonFiniteError: a logit is NaN or infinite.

    Source: double stochasticity by Sinkhorn, paper section 3.4; the correction, K and the order of steps, ours.
    Clauses: SINK-1..SINK-9.

    >>> sinkhorn_projection([[0.0, 0.0], [0.0, 0.0]], 1)
    array([[0.5, 0.5],
           [0.5, 0.5]])
    """
    return _birkhoff_correction(_sinkhorn(_checked_logits(mix_logits), checked_iterations(iterations)).plain)


def sinkhorn_projection_vjp(mix_logits: ArrayLike, cotangent: ArrayLike, iterations: int = 20) -> Array:
    """Vector-Jacobian product of :func:`sinkhorn_projection`: the exact derivative of the K unrolled steps.

    Args:
        mix_logits: S, shape (..., n, n).
        cotangent: dL/dM, the shape of M.
        iterations: K, as in the forward pass.

    Returns:
        dL/dS, shape (..., n, n). ``max rho`` takes the subgradient of its first argmax. The shift by max S carries no
        gradient, because the remaining map does not change when a constant is added to S.

    Raises:
        As :func:`sinkhorn_projection`, and ShapeError if ``cotangent`` is not shaped as M.

    Clauses: GRAD-1..GRAD-3.
    """
    logits = _checked_logits(mix_logits)
    upstream = as_float64("cotangent", cotangent)
    if upstream.shape != logits.shape:
        raise ShapeError(
            "cotangent",
            got=upstream.shape,
            allowed=f"the shape of mix_logits, {logits.shape}",
            remedy="pass dL/dM with one entry per entry of M",
        )
    trace = _sinkhorn(logits, checked_iterations(iterations))
    row_sums = trace.plain.sum(axis=ROW, keepdims=True)
    grad_plain, grad_largest = _birkhoff_correction_vjp(trace.plain, upstream)
    return _sinkhorn_vjp(trace, grad_plain + _is_first_largest(row_sums) * grad_largest)


def kink_of_projection(mix_logits: ArrayLike, cotangent: ArrayLike, iterations: int = 20) -> tuple[Array, Array]:
    """How near a kink of M is, and how much it matters.

    Args:
        mix_logits, cotangent, iterations: as for :func:`sinkhorn_projection_vjp`.

    Returns:
        The gap (...) between the two largest row sums of P, and the largest change (...) of an entry of dL/dS if the
        second of them counted as the largest. n = 1 has no kink: the gap is infinite. Where the iteration has
        converged the change vanishes, however small the gap is.

    Clauses: GRAD-2.
    """
    logits, upstream = _checked_logits(mix_logits), as_float64("cotangent", cotangent)
    trace = _sinkhorn(logits, checked_iterations(iterations))
    row_sums = trace.plain.sum(axis=ROW, keepdims=True)
    if logits.shape[-1] == 1:
        return np.full(logits.shape[:-2], np.inf), np.zeros(logits.shape[:-2])
    first = _is_first_largest(row_sums)
    others = np.where(first, -np.inf, row_sums)
    moved = (_is_first_largest(others) * 1.0 - first) * _birkhoff_correction_vjp(trace.plain, upstream)[1]
    change = np.abs(_sinkhorn_vjp(trace, np.broadcast_to(moved, logits.shape)))
    return (row_sums.max(axis=COLUMN) - others.max(axis=COLUMN))[..., 0], change.max(axis=(ROW, COLUMN))


def _sinkhorn_vjp(trace: _Trace, grad_plain: Array) -> Array:
    # The last column step is a softmax: P = softmax(X).
    grad = trace.plain * (grad_plain - (trace.plain * grad_plain).sum(axis=COLUMN, keepdims=True))
    axis = ROW
    for log_iterate in reversed(trace.log_iterates):
        grad = grad - np.exp(log_iterate) * grad.sum(axis=axis, keepdims=True)
        axis = COLUMN if axis == ROW else ROW
    return grad


def _is_first_largest(row_sums: Array) -> Array:
    return np.asarray(np.arange(row_sums.shape[COLUMN])[:, None] == row_sums.argmax(axis=COLUMN, keepdims=True))


def _sinkhorn(logits: Array, iterations: int) -> _Trace:
    log_matrix = logits - logits.max(axis=(ROW, COLUMN), keepdims=True)
    log_iterates = []
    for step in range(iterations):
        log_matrix = _log_normalise(log_matrix, ROW)
        log_iterates.append(log_matrix)
        if step < iterations - 1:
            log_matrix = _log_normalise(log_matrix, COLUMN)
            log_iterates.append(log_matrix)
    weights = np.exp(log_matrix - log_matrix.max(axis=COLUMN, keepdims=True))
    return _Trace(log_iterates, weights / weights.sum(axis=COLUMN, keepdims=True))


def _log_normalise(log_matrix: Array, axis: int) -> Array:
    # The maximum goes first and on its own: "X - (max + log sum)" loses the decimals of the log beside a large max.
    shifted = log_matrix - log_matrix.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def _birkhoff_correction(plain: Array) -> Array:
    row_sums = plain.sum(axis=ROW, keepdims=True)
    largest = row_sums.max(axis=COLUMN, keepdims=True)
    return plain / largest + (1.0 - row_sums / largest) / plain.shape[-1]


def _birkhoff_correction_vjp(plain: Array, grad_mixing: Array) -> tuple[Array, Array]:
    """The cotangent of P but for its part through m, and that of m (..., 1, 1)."""
    n = plain.shape[-1]
    row_sums = plain.sum(axis=ROW, keepdims=True)
    largest = row_sums.max(axis=COLUMN, keepdims=True)
    row_grad = grad_mixing.sum(axis=ROW, keepdims=True)  # dL/d(the constant added to a row), times n
    grad_row_sums = -row_grad / (n * largest)
    per_row = (grad_mixing * plain).sum(axis=ROW, keepdims=True) - row_sums * row_grad / n
    grad_largest = -per_row.sum(axis=COLUMN, keepdims=True) / largest**2
    return grad_mixing / largest + grad_row_sums, grad_largest


def checked_iterations(iterations: int) -> int:
    """K as an int, or ConfigError. Clause: SINK-2."""
    if isinstance(iterations, bool) or not isinstance(iterations, (int, np.integer)) or iterations < 1:
        raise ConfigError(
            "iterations", got=repr(iterations), allowed="an integer >= 1", remedy="leave it at the default, 20"
        )
    return int(iterations)


def _checked_logits(mix_logits: ArrayLike) -> Array:
    logits = as_float64("mix_logits", mix_logits)
    if logits.ndim < 2 or logits.shape[-1] != logits.shape[-2] or logits.shape[-1] == 0:
        raise ShapeError(
            "mix_logits",
            got=logits.shape,
            allowed="(..., n, n) with n >= 1",
            remedy="pass one square matrix of logits per layer",
        )
    if not np.isfinite(logits).all():
        raise NonFiniteError(
            "mix_logits",
            got=f"{np.count_nonzero(~np.isfinite(logits))} non-finite of {logits.size} values",
            allowed="finite values only",
            remedy="look for a diverged optimizer step before this call; lower the mixing learning rate",
        )
    return logits

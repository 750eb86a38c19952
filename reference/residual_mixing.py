"""Residual mixing: streams read from the residual stream, mixed by M, written back through the same basis."""

import numpy as np
from numpy.typing import NDArray

from reference.errors import DegenerateBasisError

Array = NDArray[np.float64]


def residual_mixing(x: Array, mixing: Array, strength: float, basis: Array) -> Array:
    """``y = x + alpha sum_i A_i^T (sum_j M_ij z_j - z_i)`` with ``z_i = A_i x``.

    Args:
        x: residual stream, shape (..., d).
        mixing: M, shape (n, n), doubly stochastic; contracted over its *second* index.
        strength: alpha, a number in [0, 1 / ||A||_2^2).
        basis: A, shape (n, r, d).

    Returns:
        y, shape (..., d).

    Source: linear mixing of streams, paper sections 3.1-3.2; read-in, read-out and the blend, ours.
    Clauses: MIX-1..MIX-4.
    """
    streams = _read(x, basis)
    return x + strength * _write(mixing @ streams - streams, basis)


def residual_mixing_vjp(
    x: Array, mixing: Array, strength: float, basis: Array, cotangent: Array
) -> tuple[Array, Array, float, Array]:
    """Vector-Jacobian product of :func:`residual_mixing` for (x, mixing, strength, basis), in this order.

    Clauses: GRAD-4, GRAD-5.
    """
    streams, grad_streams = _read(x, basis), _read(cotangent, basis)
    moved = mixing @ streams - streams
    moved_back = mixing.T @ grad_streams - grad_streams
    tokens = tuple(range(x.ndim - 1))
    within_stream = streams.ndim - 1
    summed = (*tokens, within_stream)
    grad_x = cotangent + strength * _write(moved_back, basis)
    grad_mixing = strength * np.tensordot(grad_streams, streams, (summed, summed))
    grad_strength = float((grad_streams * moved).sum())
    grad_basis = strength * (
        np.tensordot(moved, cotangent, (tokens, tokens)) + np.tensordot(moved_back, x, (tokens, tokens))
    )
    return grad_x, grad_mixing, grad_strength, grad_basis


def squared_norm_bound(basis: Array) -> float:
    """``kappa = (trace (A A^T)^8)^(1/8)``, a smooth bound: ``||A||_2^2 <= kappa <= (n r)^(1/8) ||A||_2^2``.

    Args:
        basis: A, shape (n, r, d), not all zero.

    Raises:
        DegenerateBasisError: A is zero.

    Clauses: MIX-5, MIX-6.
    """
    normalised, trace = _normalised_gram(basis)
    return float(trace * np.trace(np.linalg.matrix_power(normalised, 8)) ** 0.125)


def squared_norm_bound_vjp(basis: Array, cotangent: float) -> Array:
    """Vector-Jacobian product of :func:`squared_norm_bound`: ``2 kappa C^7 A / trace C^8`` with ``C = A A^T``.

    Clauses: GRAD-6.
    """
    normalised, _ = _normalised_gram(basis)
    squared = normalised @ normalised
    seventh = squared @ squared @ squared @ normalised
    trace_eighth = np.trace(seventh @ normalised)
    kappa_over_trace = trace_eighth**0.125
    flat = basis.reshape(-1, basis.shape[-1])
    return (2.0 * cotangent * kappa_over_trace / trace_eighth * (seventh @ flat)).reshape(basis.shape)


def _read(x: Array, basis: Array) -> Array:
    """(..., d), (n, r, d) -> streams (..., n, r)."""
    return np.einsum("...d,nrd->...nr", x, basis)


def _write(streams: Array, basis: Array) -> Array:
    """(..., n, r), (n, r, d) -> (..., d), by the transpose of :func:`_read`."""
    return np.einsum("...nr,nrd->...d", streams, basis)


def _normalised_gram(basis: Array) -> tuple[Array, float]:
    flat = basis.reshape(-1, basis.shape[-1])
    gram = flat @ flat.T
    trace = float(np.trace(gram))
    if not trace > 0.0:
        raise DegenerateBasisError(
            "basis",
            got="all zeros" if trace == 0.0 else f"squared norm {trace}",
            allowed="a finite basis with at least one non-zero entry",
            remedy="initialise it with init_parameters; to switch an adapter off, disable it instead",
        )
    return gram / trace, trace

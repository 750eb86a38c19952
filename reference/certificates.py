"""Certificates: how far an adapter can shrink a direction, and how far two states of it lie apart."""

import numpy as np
from numpy.typing import NDArray

from reference.adapter import AdapterParameters, adapter_strength, checked_parameters
from reference.errors import ShapeError
from reference.sinkhorn_projection import sinkhorn_projection

Array = NDArray[np.float64]


def adapter_spectrum(parameters: AdapterParameters, iterations: int = 20) -> tuple[float, float]:
    """Largest and smallest singular value of the adapter ``G = I + alpha A^T D A``, ``D = M (x) I_r - I``.

    With ``A^T = Q R`` the map is the identity off the span of Q, and ``I + alpha R D R^T`` within it.

    Args:
        parameters: one layer's S (n, n), gamma (), A (n, r, d).
        iterations: K.

    Returns:
        (largest, smallest). By Theorem 2 the largest is at most 1; the smallest says how much of some direction the
        layer can erase.

    Clauses: CERT-1. Raises: as ``adapter_forward``.
    """
    checked = checked_parameters(parameters)
    hidden_size = checked.basis.shape[2]
    _, triangle = np.linalg.qr(checked.basis.reshape(-1, hidden_size).T)
    within_span = np.eye(triangle.shape[0]) + _change(checked, triangle, iterations)
    singular_values = np.linalg.svd(within_span, compute_uv=False)
    off_span = [1.0] if hidden_size > triangle.shape[0] else []
    return float(max([*singular_values, *off_span])), float(min([*singular_values, *off_span]))


def displacement(first: AdapterParameters, second: AdapterParameters, iterations: int = 20) -> float:
    """``||G_first - G_second||_2``, exact: at most this times ||x|| changes when one state replaces the other.

    Both changes live in the span of the stacked bases ``[A_p; A_q]^T = Q R``, so a matrix of 2 n r suffices.

    Args:
        first, second: two states of one layer; the hidden sizes must agree, streams and ranks need not.
        iterations: K.

    Clauses: CERT-2. Raises: ShapeError if the hidden sizes differ, and as ``adapter_forward``.
    """
    first, second = checked_parameters(first), checked_parameters(second)
    flat_first, flat_second = (state.basis.reshape(-1, state.basis.shape[-1]) for state in (first, second))
    if flat_first.shape[1] != flat_second.shape[1]:
        raise ShapeError(
            "basis",
            got=f"hidden sizes {flat_first.shape[1]} and {flat_second.shape[1]}",
            allowed="two states of the same layer",
            remedy="compare states that were trained on the same model",
        )
    _, triangle = np.linalg.qr(np.concatenate([flat_first, flat_second]).T)
    split = flat_first.shape[0]
    change = _change(first, triangle[:, :split], iterations) - _change(second, triangle[:, split:], iterations)
    return float(np.linalg.norm(change, 2))


def _change(parameters: AdapterParameters, coordinates: Array, iterations: int) -> Array:
    """``alpha A^T D A`` in an orthonormal basis in which the columns of A^T are ``coordinates``."""
    mixing = sinkhorn_projection(parameters.mix_logits, iterations)
    mixer = np.kron(mixing - np.eye(mixing.shape[0]), np.eye(parameters.basis.shape[1]))
    return adapter_strength(parameters) * coordinates @ mixer @ coordinates.T

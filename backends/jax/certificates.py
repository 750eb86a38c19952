"""Certificates and the displacement budget for a stack of layers: on the host, in float64, all layers at once.

With the two states' bases stacked, ``[A_p; A_q]^T = Q R``, every state on the segment between them has its basis in
the span of Q too, so one QR serves a whole search along the segment.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array
from numpy.typing import NDArray

from backends.certificate import Certificate
from backends.jax.adapter import CRMAAdapter
from reference.adapter import AdapterParameters, adapter_strength
from reference.displacement_budget import BISECTIONS, check_budget
from reference.errors import DegenerateBasisError, NonFiniteError, ShapeError
from reference.sinkhorn_projection import sinkhorn_projection

Float64 = NDArray[np.float64]


def certificate(stack: CRMAAdapter, anchor: CRMAAdapter | None = None) -> Certificate:
    """Bounds of every layer of ``stack``: M as JAX computes it, and the singular values of the adapter with it.

    With ``anchor``, also ``||G_now - G_anchor||_2``. Raises: NonFiniteError; DegenerateBasisError where float32 cannot
    hold ``||A||^2``; ShapeError for an anchor of another size. Clauses: SINK-5, SINK-6, CERT-1, CERT-2.
    """
    now = _host(stack, "")
    prepared = stack.prepared()
    _require(np.isfinite(strength := np.asarray(prepared.strength)) & (strength > 0), "basis")
    mixing = np.asarray(prepared.mixing, np.float64)
    sums = np.concatenate([mixing.sum(-1), mixing.sum(-2)], axis=-1)
    hidden_size, width = now.basis.shape[-1], now.basis.shape[1] * now.basis.shape[2]
    triangle = np.linalg.qr(np.swapaxes(_flat(now.basis), -1, -2)).R
    change = _change(mixing, now.gate_logit, triangle, now.basis.shape[2])
    singular_values = np.linalg.svd(np.eye(width) + change, compute_uv=False)
    if hidden_size > width:  # off the span of the basis the adapter is the identity
        singular_values = np.concatenate([singular_values, np.ones((len(mixing), 1))], axis=-1)
    return Certificate(
        sum_error=np.abs(sums - 1).max(-1),
        mixing_norm=np.linalg.norm(mixing, 2, axis=(-2, -1)),
        largest=singular_values.max(-1),
        smallest=singular_values.min(-1),
        displacement=None if anchor is None else displacement(anchor, stack),
    )


def displacement(anchor: CRMAAdapter, stack: CRMAAdapter) -> Float64:
    """``||G_now - G_anchor||_2`` per layer, shape (L,), exact. Raises: as :func:`certificate`. Clause: CERT-2."""
    return _Segment(anchor, stack).displacement(np.ones(len(stack.basis)))


def limit_displacement(anchor: CRMAAdapter, stack: CRMAAdapter, delta: float) -> tuple[CRMAAdapter, Float64]:
    """``stack`` with every layer within ``delta`` of ``anchor``: pulled back along the segment to it, by bisection.

    A layer that is inside keeps its bits; a point where A = 0 is outside.

    Returns:
        The limited stack, and per layer the fraction of the way from the anchor that was kept, shape (L,).

    Raises: ConfigError for a delta that is no number > 0; for the anchor ShapeError, NonFiniteError and
    DegenerateBasisError. Clauses: BUDGET-1..BUDGET-3.
    """
    check_budget("delta", delta)
    return pulled_back(_Segment(anchor, stack).displacement, delta, anchor, stack)


def pulled_back(
    measure: Callable[[Float64], Float64], budget: float, anchor: CRMAAdapter, stack: CRMAAdapter
) -> tuple[CRMAAdapter, Float64]:
    """Each layer of ``stack`` as it is if its ``measure`` there is within ``budget``, else at the last point of the
    segment from ``anchor`` that bisection finds inside; and the fraction of each layer, (L,).

    ``measure``: of the fractions (L,), with a value (L,) for each layer. Clauses: BUDGET-2, DATA-3.
    """
    inside, outside = np.zeros(len(stack.basis)), np.ones(len(stack.basis))
    within = measure(outside) <= budget
    if within.all():
        return stack, outside
    for _ in range(BISECTIONS):
        middle = (inside + outside) / 2
        fits = measure(middle) <= budget
        inside, outside = np.where(fits, middle, inside), np.where(fits, outside, middle)
    fraction = np.where(within, 1.0, inside)

    def blend(start: Array, end: Array) -> Array:
        """In float64, rounded once: near a basis of zeros the difference of two large numbers loses its direction."""
        t = fraction.reshape(-1, *[1] * (end.ndim - 1))
        host_start, host_end = np.asarray(start, np.float64), np.asarray(end, np.float64)
        blended = np.where(t == 1, host_end, host_start + t * (host_end - host_start))
        return jax.device_put(blended.astype(end.dtype), end.sharding)

    return jax.tree.map(blend, anchor, stack), fraction


class _Segment:
    """States between two of one shape, in coordinates of the joint span of their bases."""

    def __init__(self, anchor: CRMAAdapter, stack: CRMAAdapter) -> None:
        start, end = checked_states(anchor, stack)
        triangle = np.linalg.qr(np.swapaxes(np.concatenate([_flat(start.basis), _flat(end.basis)], 1), -1, -2)).R
        self.rank, width = start.basis.shape[2], triangle.shape[-1] // 2
        self.iterations = stack.iterations
        self.start = start._replace(basis=triangle[..., :width])
        self.end = end._replace(basis=triangle[..., width:])
        self.change_at_start = self._change_of(self.start)

    def displacement(self, fraction: Float64) -> Float64:
        """At ``fraction`` (L,) of the way; infinity where A is zero."""

        state = between(self.start, self.end, fraction)
        lost = np.abs(state.basis).max((-2, -1)) == 0
        safe = state._replace(basis=np.where(lost[:, None, None], self.start.basis, state.basis))
        moved = np.linalg.norm(self._change_of(safe) - self.change_at_start, 2, axis=(-2, -1))
        return np.where(lost, np.inf, moved)

    def _change_of(self, state: AdapterParameters) -> Float64:
        mixing = sinkhorn_projection(state.mix_logits, self.iterations)
        return _change(mixing, state.gate_logit, state.basis, self.rank)


def _change(mixing: Float64, gate_logit: Float64, coordinates: Float64, rank: int) -> Float64:
    """``alpha A^T (M (x) I_r - I) A`` per layer, where the columns of A^T are ``coordinates`` (L, m, n r)."""
    layers, n, _ = mixing.shape
    mixer = np.einsum("lij,rs->lirjs", mixing - np.eye(n), np.eye(rank)).reshape(layers, n * rank, n * rank)
    strength = np.array(
        [
            adapter_strength(AdapterParameters(logits, gate, rows.T.reshape(n, rank, -1)))
            for logits, gate, rows in zip(mixing, gate_logit, coordinates, strict=True)
        ]
    )
    changed: Float64 = strength[:, None, None] * (coordinates @ mixer @ np.swapaxes(coordinates, -1, -2))
    return changed


def checked_states(anchor: CRMAAdapter, stack: CRMAAdapter) -> tuple[AdapterParameters, AdapterParameters]:
    """Both on the host, stacked, in float64. Raises: ShapeError, NonFiniteError, DegenerateBasisError (BUDGET-3)."""
    for field in AdapterParameters._fields:
        start, end = np.shape(getattr(anchor, field)), np.shape(getattr(stack, field))
        if start != end:
            raise ShapeError(
                f"{field} of the anchor",
                got=start,
                allowed=f"{end}, as this model has it",
                remedy="take the anchor from this run, after its sizes were chosen",
            )
    states = _host(anchor, " of the anchor"), _host(stack, "")
    _require(np.abs(states[0].basis).max((-3, -2, -1)) > 0, "basis of the anchor")
    return states


def between(start: AdapterParameters, end: AdapterParameters, fraction: Float64) -> AdapterParameters:
    """Stacked states on the segment, each layer at its own fraction; exactly the end where it is 1."""

    def at(start: Float64, end: Float64) -> Float64:
        t = fraction.reshape(-1, *[1] * (end.ndim - 1))
        return np.where(t == 1, end, start + t * (end - start))

    return AdapterParameters(*map(at, start, end))


def _host(stack: CRMAAdapter, of: str) -> AdapterParameters:
    """The parameters of all layers, stacked, in float64."""
    return AdapterParameters(*(as_finite(field + of, getattr(stack, field)) for field in AdapterParameters._fields))


def as_finite(field: str, values: Any) -> Float64:
    """On the host, in float64. Raises: NonFiniteError."""
    host = np.asarray(values, np.float64)
    if not np.isfinite(host).all():
        raise NonFiniteError(
            field,
            got="NaN or infinity",
            allowed="finite values only",
            remedy="lower the learning rate, or restore the last good adapter state",
        )
    return host


def _flat(basis: Float64) -> Float64:
    """(L, n, r, d) -> (L, n r, d)."""
    return basis.reshape(len(basis), -1, basis.shape[-1])


def _require(holds: NDArray[np.bool_], field: str) -> None:
    if not holds.all():
        raise DegenerateBasisError(
            field,
            got=f"zeros, or ||A||^2 that float32 cannot hold, in layer {int(np.argmin(holds))}",
            allowed="a basis with ||A||^2 in the range of float32",
            remedy="start from init_parameters, and keep weight decay off the basis",
        )

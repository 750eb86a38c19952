"""Certificates and the displacement budget for a stack of layers, batched and in float64.

With the two states' bases stacked, ``[A_p; A_q]^T = Q R``, every state on the segment between them has its basis in
the span of Q too, so one QR serves a whole search along the segment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from backends.certificate import Certificate
from backends.torch.checks import require_finite
from backends.torch.residual_mixing import adapter_strength
from backends.torch.sinkhorn_projection import sinkhorn_projection
from reference.displacement_budget import BISECTIONS, check_budget
from reference.errors import DegenerateBasisError, ShapeError


class AdapterState(NamedTuple):
    """Stacked parameters of L layers: mix_logits (L, n, n), gate_logits (L,), bases (L, n, r, d). Clause: STATE-1."""

    mix_logits: Tensor
    gate_logits: Tensor
    bases: Tensor


def certificate(state: AdapterState, iterations: int) -> Certificate:
    """Measure M as it is used (float32), and the adapter's singular values.

    Raises: DegenerateBasisError where float32 cannot hold ``||A||^2``, which is 0 or beyond 1e38, so alpha is lost.
    Clauses: CERT-1.
    """
    usable = adapter_strength(state.gate_logits.float(), state.bases.float())
    lost = ~((usable > 0) & usable.isfinite())
    if bool(lost.any()):
        raise _degenerate("basis", f"||A||^2 that float32 cannot hold, in layer {int(lost.int().argmax())}")
    return certificate_of(sinkhorn_projection(state.mix_logits.float(), iterations).double(), state)


def certificate_of(mixing: Tensor, state: AdapterState) -> Certificate:
    """The same for mixing matrices as they are given, (L, n, n) in float64, whatever they are. Clauses: CERT-1."""
    sums = torch.cat([mixing.sum(-1), mixing.sum(-2)], dim=-1)
    hidden_size, width = state.bases.shape[-1], state.bases.shape[1] * state.bases.shape[2]
    _, triangle = torch.linalg.qr(state.bases.double().flatten(1, 2).mT)
    change = _change(mixing, state.gate_logits.double(), triangle, state.bases.shape[2])
    singular_values = torch.linalg.svdvals(torch.eye(width, dtype=torch.float64, device=change.device) + change)
    if hidden_size > width:  # off the span of the basis the adapter is the identity
        singular_values = torch.cat([singular_values, torch.ones_like(singular_values[:, :1])], dim=-1)
    return Certificate(
        sum_error=(sums - 1).abs().amax(-1),
        mixing_norm=torch.linalg.matrix_norm(mixing, ord=2),
        largest=singular_values.amax(-1),
        smallest=singular_values.amin(-1),
    )


def displacement(first: AdapterState, second: AdapterState, iterations: int) -> Tensor:
    """``||G_first - G_second||_2`` per layer, shape (L,), float64, exact; NaN where the second's A is zero.

    Raises: as :func:`limit_displacement` for the first as anchor. Clause: CERT-2.
    """
    first = checked_anchor(first, second)
    return Segment(first, second, iterations).displacement(torch.ones(len(first.bases), dtype=torch.float64))


def limit_displacement(
    anchor: AdapterState, now: AdapterState, delta: float, iterations: int, segment: Segment | None = None
) -> Tensor:
    """How far each layer may go from ``anchor`` towards ``now``: the fraction t in [0, 1], shape (L,).

    t = 1 where ``now`` is within ``delta`` of the anchor; else a t, found by bisection, whose displacement is at most
    ``delta``. A point where A = 0 is outside. ``segment``: between the two states, where it is at hand.

    Raises: ConfigError for a delta that is no positive number; for the anchor ShapeError if it is of another size,
    NonFiniteError, and DegenerateBasisError where its A is zero. Clauses: BUDGET-1..BUDGET-3.
    """
    check_budget("delta", delta)
    anchor = checked_anchor(anchor, now)
    segment = segment or Segment(anchor, now, iterations)
    return last_inside(segment.displacement, delta, now)


def surely_within(segment: Segment, now: AdapterState, delta: float) -> bool:
    """Whether both states are finite and no layer is further than ``delta`` from the anchor by its Frobenius norm,
    which bounds the spectral norm and takes no eigenvalues. The host waits for the device once.

    False where that is not sure: then :func:`limit_displacement` decides, and says what is wrong.

    Raises: ConfigError for a delta that is no positive number. Clauses: BUDGET-1, BUDGET-2.
    """
    check_budget("delta", delta)
    furthest = segment.frobenius_at_end().max()
    finite = [tensor.isfinite().all() for tensor in (*segment.anchor, *now)]
    # NaN is no smaller than anything; the margin is for the rounding of either norm.
    return bool(torch.stack([furthest <= (1 - 1e-9) * delta, *finite]).all())


def last_inside(measure: Callable[[Tensor], Tensor], budget: float, now: AdapterState) -> Tensor:
    """Per layer of ``now`` 1 if its ``measure`` there is within ``budget``; else the last fraction found inside by
    bisection. ``measure``: of the fractions (L,), with a value (L,) for each layer; NaN counts as outside.

    Clauses: BUDGET-2, DATA-3.
    """
    inside = torch.zeros(len(now.bases), dtype=torch.float64, device=now.bases.device)
    outside = torch.ones_like(inside)
    within = measure(outside) <= budget
    if bool(within.all()):
        return outside
    for _ in range(BISECTIONS):
        middle = (inside + outside) / 2
        fits = measure(middle) <= budget
        inside, outside = torch.where(fits, middle, inside), torch.where(fits, outside, middle)
    return torch.where(within, torch.ones_like(inside), inside)


def interpolate(anchor: AdapterState, now: AdapterState, fraction: Tensor) -> AdapterState:
    """``anchor + t (now - anchor)`` per layer; exactly ``now`` where t = 1.

    In float64, rounded once: near a basis of zeros the difference of two large numbers would lose its direction.
    """

    def blend(start: Tensor, end: Tensor) -> Tensor:
        t = fraction.view(-1, *[1] * (end.ndim - 1))
        return torch.where(t == 1, end, (start.double() + t * (end.double() - start.double())).to(end.dtype))

    return AdapterState(*(blend(start, end) for start, end in zip(anchor, now, strict=True)))


def checked_anchor(anchor: AdapterState, now: AdapterState) -> AdapterState:
    """``anchor`` on the device of ``now``, finite and with a basis."""
    moved = _on_device_of(anchor, now)
    for field, start in zip(AdapterState._fields, anchor, strict=True):
        require_finite(f"{field} of the anchor", start)
    zero = anchor.bases.abs().amax((-3, -2, -1)) == 0
    if bool(zero.any()):
        raise _degenerate("basis of the anchor", f"zeros throughout, in layer {int(zero.int().argmax())}")
    return moved


def _on_device_of(anchor: AdapterState, now: AdapterState) -> AdapterState:
    for field, start, end in zip(AdapterState._fields, anchor, now, strict=True):
        if start.shape != end.shape:
            raise ShapeError(
                f"{field} of the anchor",
                got=tuple(start.shape),
                allowed=f"{tuple(end.shape)}, as this model has it",
                remedy="take the anchor from this run, after its sizes were chosen",
            )
    return AdapterState(*(tensor.to(now.bases.device) for tensor in anchor))


def _degenerate(field: str, got: str) -> DegenerateBasisError:
    return DegenerateBasisError(
        field,
        got=got,
        allowed="a basis with ||A||^2 in the range of float32",
        remedy="start from init_parameters, and keep weight decay off the basis",
    )


class Segment:
    """States between two of one shape, in coordinates of the joint span of their bases. Raises: ShapeError."""

    def __init__(self, start: AdapterState, end: AdapterState, iterations: int) -> None:
        self.anchor = start = _on_device_of(start, end)
        self.iterations, self.rank = iterations, start.bases.shape[2]
        flat_start, flat_end = (state.bases.double().flatten(1, 2) for state in (start, end))
        _, triangle = torch.linalg.qr(torch.cat([flat_start, flat_end], dim=1).mT)
        width = flat_start.shape[1]
        self.start = AdapterState(start.mix_logits.double(), start.gate_logits.double(), triangle[..., :width])
        self.end = AdapterState(end.mix_logits.double(), end.gate_logits.double(), triangle[..., width:])
        self.change_at_start = self._change(self.start)

    def displacement(self, fraction: Tensor) -> Tensor:
        at_fraction = interpolate(self.start, self.end, fraction.to(self.start.bases.device))
        difference = self._change(at_fraction) - self.change_at_start
        known = difference.isfinite().all(-1).all(-1)  # eigvalsh refuses NaN
        squared = torch.where(known[:, None, None], difference.mT @ difference, 0.0)
        return torch.where(known, torch.linalg.eigvalsh(squared)[..., -1].clamp(min=0).sqrt(), torch.nan)

    def frobenius_at_end(self) -> Tensor:
        """``||G_end - G_start||_F`` per layer, shape (L,), at least the spectral norm; NaN where one is not finite."""
        return (self._change(self.end) - self.change_at_start).flatten(1).norm(dim=1)

    def _change(self, state: AdapterState) -> Tensor:
        mixing = sinkhorn_projection(state.mix_logits, self.iterations)
        return _change(mixing, state.gate_logits, state.bases, self.rank)


def _change(mixing: Tensor, gate_logits: Tensor, coordinates: Tensor, rank: int) -> Tensor:
    """``alpha A^T D A`` where the columns of A^T have these ``coordinates`` (L, k, n r) in an orthonormal basis."""
    layers, n, _ = mixing.shape
    by_stream = coordinates.mT.reshape(layers, n, rank, -1)
    moved = torch.einsum("lij,ljrk->lirk", mixing, by_stream) - by_stream
    strength = adapter_strength(gate_logits, by_stream)
    return strength[:, None, None] * (coordinates @ moved.flatten(1, 2))

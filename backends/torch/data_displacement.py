"""Data displacement and its budget for a stack of layers, batched and in float64; and the moments that it needs."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from backends.torch.certificates import AdapterState, checked_anchor, interpolate, last_inside
from backends.torch.checks import require_finite
from backends.torch.residual_mixing import adapter_strength
from backends.torch.sinkhorn_projection import sinkhorn_projection
from reference.data_displacement import MOMENT_ROUNDING, check_count, other_basis, refused_moment
from reference.displacement_budget import check_budget
from reference.errors import ShapeError


class StreamMoments(NamedTuple):
    """Of L layers, ``totals``: sum over tokens of ``z z^T / ||x||^2``, (L, n r, n r), float64; ``tokens``: how many
    tokens, the same in each layer. Clause: DATA-1."""

    totals: Tensor
    tokens: int

    def joined(self, other: "StreamMoments") -> "StreamMoments":
        """The moments of the tokens of both."""
        return StreamMoments(self.totals + other.totals.to(self.totals.device), self.tokens + other.tokens)


class MomentGatherer:
    """The moments of what reaches each layer: bases (L, n, r, d), ``counted`` (batch, tokens). Clause: DATA-1."""

    def __init__(self, bases: Tensor, counted: Tensor) -> None:
        self._bases, self._counted = bases.double().flatten(1, 2), counted.bool()
        layers, width, _ = self._bases.shape
        self._totals = [self._bases.new_zeros(width, width) for _ in range(layers)]
        self._passes = [0] * layers

    @torch.no_grad()
    def add(self, layer: int, adapter: Any, inputs: tuple[Tensor, ...]) -> None:
        """A pre-hook of the adapter of ``layer``. Raises: ShapeError."""
        (x,) = inputs
        if x.shape[:-1] != self._counted.shape:
            raise ShapeError(
                "counted",
                got=tuple(self._counted.shape),
                allowed=f"{tuple(x.shape[:-1])}, as the tokens of this forward pass",
                remedy="say of each token of the batch whether it counts",
            )
        tokens = x[self._counted.to(x.device)].double()
        norms = tokens.norm(dim=-1, keepdim=True)
        streams = tokens / torch.where(norms > 0, norms, 1.0) @ self._bases[layer].to(x.device).mT
        self._totals[layer] += (streams.mT @ streams).to(self._totals[layer].device)
        self._passes[layer] += 1

    def moments(self) -> StreamMoments:
        """Of all passes so far. Raises: NonFiniteError where the residual stream was not finite."""
        totals = torch.stack(self._totals)
        require_finite("residual stream", totals)
        return StreamMoments(totals, int(self._counted.sum()) * max(self._passes))


def data_displacement(anchor: AdapterState, now: AdapterState, moments: StreamMoments, iterations: int) -> Tensor:
    """Root mean square of ``||G x - G_anchor x|| / ||x||`` over the tokens of ``moments``, per layer, (L,), float64.

    Raises: ConfigError for a basis other than the anchor's, or what is no moment; for the anchor as
    :func:`backends.torch.certificates.limit_displacement`. Clauses: DATA-2, DATA-4, DATA-5.
    """
    segment = _Segment(anchor, now, moments, iterations)
    return segment.displacement(torch.ones(len(now.bases), dtype=torch.float64))


def limit_data_displacement(
    anchor: AdapterState, now: AdapterState, moments: StreamMoments, epsilon: float, iterations: int
) -> Tensor:
    """How far each layer may go from ``anchor`` towards ``now``: the fraction t in [0, 1], shape (L,).

    As :func:`backends.torch.certificates.limit_displacement`, with the data displacement as the measure.

    Raises: ConfigError for an epsilon that is no positive number, and as :func:`data_displacement`.
    Clauses: DATA-3..DATA-5.
    """
    check_budget("epsilon", epsilon)
    return last_inside(_Segment(anchor, now, moments, iterations).displacement, epsilon, now)


def _checked_mean(moments: StreamMoments, bases: Tensor) -> Tensor:
    totals, width = moments.totals.to(bases.device, torch.float64), bases.shape[1] * bases.shape[2]
    check_count(moments.tokens)
    if totals.shape != (len(bases), width, width):
        raise ShapeError(
            "moments",
            got=tuple(totals.shape),
            allowed=f"({len(bases)}, {width}, {width}), as this model has it",
            remedy="gather them with gather_moments, on this model",
        )
    require_finite("moments", totals)
    asymmetry = (totals - totals.mT).abs().amax((-2, -1))
    smallest = torch.linalg.eigvalsh((totals + totals.mT) / 2)[:, 0]
    slack = MOMENT_ROUNDING * totals.diagonal(dim1=-2, dim2=-1).sum(-1)
    wrong = ~((asymmetry <= slack) & (smallest >= -slack))
    if bool(wrong.any()):
        layer = int(wrong.int().argmax())
        raise refused_moment(f"moments of layer {layer}", float(asymmetry[layer]), float(smallest[layer]))
    return totals / moments.tokens


class _Segment:
    """States between two with one basis, whose Gram matrix and norm its triangular factor keeps."""

    def __init__(self, anchor: AdapterState, now: AdapterState, moments: StreamMoments, iterations: int) -> None:
        anchor, self.iterations = checked_anchor(anchor, now), iterations
        differs = (anchor.bases != now.bases) | (anchor.bases.signbit() != now.bases.signbit())
        if bool(differs.any()):
            raise other_basis(f", in layer {int(differs.flatten(1).any(-1).int().argmax())}")
        layers, streams, rank, _ = now.bases.shape
        _, triangle = torch.linalg.qr(now.bases.double().flatten(1, 2).mT)
        self.gram, by_stream = triangle.mT @ triangle, triangle.mT.reshape(layers, streams, rank, -1)
        self.mean = _checked_mean(moments, now.bases).reshape(layers, streams, rank, streams, rank)
        self.start, self.end = (
            AdapterState(state.mix_logits.double(), state.gate_logits.double(), by_stream) for state in (anchor, now)
        )
        self.mixer_at_start = self._mixer(self.start)

    def displacement(self, fraction: Tensor) -> Tensor:
        at_fraction = interpolate(self.start, self.end, fraction.to(self.gram.device))._replace(bases=self.start.bases)
        moved = self._mixer(at_fraction) - self.mixer_at_start
        seen = torch.einsum("lij,ljrks,lmk->lirms", moved, self.mean, moved).reshape(self.gram.shape)
        return (self.gram * seen).sum((-2, -1)).clamp(min=0).sqrt()  # rounding may leave less than 0 where it is 0

    def _mixer(self, state: AdapterState) -> Tensor:
        """``alpha (M - I)``, (L, n, n)."""
        mixing = sinkhorn_projection(state.mix_logits, self.iterations)
        identity = torch.eye(mixing.shape[-1], dtype=mixing.dtype, device=mixing.device)
        return adapter_strength(state.gate_logits, state.bases)[:, None, None] * (mixing - identity)

"""Data displacement and its budget for a stack of layers, on the host and in float64; and the moments that it needs.

The sums of one batch are made on the device, in float32; those of all batches on the host, in float64.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from backends.jax.adapter import CRMAAdapter, PreparedAdapter
from backends.jax.certificates import Float64, as_finite, between, checked_states, pulled_back
from backends.jax.decoder import observed
from backends.jax.dtypes import wide_dtype
from reference.adapter import AdapterParameters, adapter_strength, sigmoid
from reference.data_displacement import StreamMoment, checked_moment, other_basis
from reference.displacement_budget import check_budget
from reference.errors import CRMAError, ShapeError
from reference.sinkhorn_projection import sinkhorn_projection


class StreamMoments(NamedTuple):
    """Of L layers, ``totals``: sum over tokens of ``z z^T / ||x||^2``, (L, n r, n r), float64; ``tokens``: how many
    tokens, the same in each layer. Clause: DATA-1."""

    totals: Float64
    tokens: int

    def joined(self, other: StreamMoments) -> StreamMoments:
        """The moments of the tokens of both."""
        return StreamMoments(self.totals + other.totals, self.tokens + other.tokens)


def stream_total(x: Array, basis: Array, counted: Array) -> Array:
    """``sum_x z z^T / ||x||^2``, ``z = A x``, over the tokens that count: (n r, n r), in float32 or wider.

    Args:
        x: residual stream, (..., d). basis: A, (n, r, d). counted: (...), not 0 where a token counts.

    Raises: ShapeError. Clause: DATA-1.
    """
    if basis.ndim != 3:
        raise ShapeError("basis", got=basis.shape, allowed="(n, r, d)", remedy="pass one layer's basis")
    dtype = wide_dtype(x)
    tokens, flat = x.astype(dtype), basis.reshape(-1, basis.shape[-1]).astype(dtype)
    largest = jnp.abs(tokens).max(-1, keepdims=True)  # whose square may overflow
    tokens = tokens / jnp.where(largest > 0, largest, 1)
    norms = jnp.sqrt((tokens * tokens).sum(-1, keepdims=True))
    tokens = tokens / jnp.where(norms > 0, norms, 1)
    streams = jnp.matmul(tokens, flat.T, precision=lax.Precision.HIGHEST)
    streams = jnp.where(jnp.asarray(counted).astype(bool)[..., None], streams, 0).reshape(-1, len(flat))
    return jnp.matmul(streams.T, streams, precision=lax.Precision.HIGHEST)


def gather_totals(
    params: Any,
    config: Any,
    input_ids: Any,
    attention_mask: Any,
    counted: Any,
    adapter: PreparedAdapter,
    **options: Any,
) -> Array:
    """The totals of one batch for :func:`moments_of`, (L, n r, n r), from a forward pass of the decoder.

    Args:
        counted: which tokens count, (batch, tokens); neither padding nor the first of a text should.
        adapter: the stack that the decoder computes with, and whose bases read the streams.
        options: those of :func:`backends.jax.decoder.logits`, such as ``lora``.

    Raises: ShapeError. Clause: DATA-1.
    """
    if np.shape(counted) != np.shape(input_ids):
        raise ShapeError(
            "counted",
            got=np.shape(counted),
            allowed=f"{np.shape(input_ids)}, as input_ids",
            remedy="say of each token of the batch whether it counts",
        )
    totals: Array = observed(
        params,
        config,
        input_ids,
        attention_mask,
        observe=lambda layer, x: stream_total(x, layer.basis, counted),
        adapter=PreparedAdapter.__call__,
        adapter_params=adapter,
        **options,
    )
    return totals


def moments_of(totals: Any, count: int) -> StreamMoments:
    """What :func:`gather_totals` returned for ``count`` tokens, on the host. Raises: NonFiniteError. Clause: DATA-1."""
    host = as_finite("residual stream", totals)
    return StreamMoments((host + np.swapaxes(host, -1, -2)) / 2, count)  # a product need not be symmetric to the bit


def data_displacement(anchor: CRMAAdapter, stack: CRMAAdapter, moments: StreamMoments) -> Float64:
    """Root mean square of ``||G x - G_anchor x|| / ||x||`` over the tokens of ``moments``, per layer, shape (L,).

    Raises: ConfigError for a basis other than the anchor's, or what is no moment; for the anchor as
    :func:`backends.jax.certificates.limit_displacement`. Clauses: DATA-2, DATA-4, DATA-5.
    """
    return _Segment(anchor, stack, moments).displacement(np.ones(len(stack.basis)))


def limit_data_displacement(
    anchor: CRMAAdapter, stack: CRMAAdapter, moments: StreamMoments, epsilon: float
) -> tuple[CRMAAdapter, Float64]:
    """``stack`` with every layer within ``epsilon`` of ``anchor`` by its data displacement; the basis stays as it is.

    Returns:
        The limited stack, and per layer the fraction of the way from the anchor that was kept, shape (L,).

    Raises: ConfigError for an epsilon that is no number > 0, and as :func:`data_displacement`.
    Clauses: DATA-3..DATA-5.
    """
    check_budget("epsilon", epsilon)
    limited, fraction = pulled_back(_Segment(anchor, stack, moments).displacement, epsilon, anchor, stack)
    return (limited if limited is stack else replace(limited, basis=stack.basis)), fraction


class _Segment:
    """States between two with one basis."""

    def __init__(self, anchor: CRMAAdapter, stack: CRMAAdapter, moments: StreamMoments) -> None:
        self.start, self.end = checked_states(anchor, stack)
        self.iterations = stack.iterations
        layers = [AdapterParameters(*layer) for layer in zip(*self.start, strict=True)]
        for index, (start, end) in enumerate(zip(layers, self.end.basis, strict=True)):
            if start.basis.tobytes() != end.tobytes():
                raise other_basis(f", in layer {index}")
        count, streams, rank, _ = self.start.basis.shape
        if len(moments.totals) != count:
            raise ShapeError(
                "moments",
                got=f"{len(moments.totals)} layers",
                allowed=f"{count}, as this model has it",
                remedy="gather them on this model",
            )
        self.mean = np.stack([_mean(moments, index, layer) for index, layer in enumerate(layers)])
        self.mean = self.mean.reshape(count, streams, rank, streams, rank)
        flat = self.start.basis.reshape(count, streams * rank, -1)
        self.gram = flat @ np.swapaxes(flat, -1, -2)
        # alpha is sigmoid(gamma) times a number of the basis alone
        self.half = np.array([adapter_strength(layer._replace(gate_logit=np.zeros(()))) for layer in layers])
        self.mixer_at_start = self._mixer(self.start)

    def displacement(self, fraction: Float64) -> Float64:
        moved = self._mixer(between(self.start, self.end, fraction)) - self.mixer_at_start
        seen = np.einsum("lij,ljrks,lmk->lirms", moved, self.mean, moved, optimize=True).reshape(self.gram.shape)
        root: Float64 = np.sqrt(np.maximum((self.gram * seen).sum((-2, -1)), 0.0))  # rounding may leave less than 0
        return root

    def _mixer(self, state: AdapterParameters) -> Float64:
        """``alpha (M - I)``, (L, n, n)."""
        mixing = sinkhorn_projection(state.mix_logits, self.iterations)
        strength = 2 * self.half * np.array([sigmoid(float(gate)) for gate in state.gate_logit])
        mixer: Float64 = strength[:, None, None] * (mixing - np.eye(mixing.shape[-1]))
        return mixer


def _mean(moments: StreamMoments, layer: int, parameters: AdapterParameters) -> Float64:
    try:
        return checked_moment(StreamMoment(moments.totals[layer], moments.tokens), parameters)
    except CRMAError as error:
        where = f"{error.field}, layer {layer}"
        raise type(error)(where, got=error.got, allowed=error.allowed, remedy=error.remedy) from error

"""Residual mixing in PyTorch: one layer's streams, with the gradient in closed form, and the gate's strength.

Matrix products on a GPU are made in TF32 where ``torch.set_float32_matmul_precision`` allows that, against MIX-10;
those of the Triton kernels never are.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from backends.torch.dtypes import require_floats
from reference.errors import ShapeError


def residual_mixing(x: Tensor, mixing: Tensor, strength: Tensor, basis: Tensor) -> Tensor:
    """``y = x + alpha sum_i A_i^T (sum_j M_ij z_j - z_i)``, ``z_i = A_i x``.

    Args:
        x: residual stream, shape (..., d), any floating dtype.
        mixing: M, shape (n, n). strength: alpha, one value. basis: A, shape (n, r, d). All float32 (or float64).

    Returns:
        y, shape and dtype of x. What is added to x is computed in the parameters' dtype.

    Raises: DtypeError; ShapeError if there is more than one strength. Clauses: MIX-2..MIX-4, MIX-10, GRAD-4..GRAD-7.
    Source: ours.
    """
    require_floats(x=x, mixing=mixing, strength=strength, basis=basis)
    if strength.numel() != 1:
        raise ShapeError(
            "strength",
            got=tuple(strength.shape),
            allowed="a single value",
            remedy="use one gate per layer: one per stream would let the adapter expand",
        )
    if not torch.is_grad_enabled():  # the same operations, without what autograd costs: half the time for one token
        return add_mixed(x, basis, mixed_basis(mixing, strength, basis))
    y: Tensor = _ResidualMixing.apply(x, mixing, strength, basis)[0]
    return y


def mixed_basis(mixing: Tensor, strength: Tensor, basis: Tensor) -> Tensor:
    """``C = alpha (M - I)^T A``: mixing acts on the basis, once, not on each token: ``y = x + z C``, ``z = A x``.

    Args:
        mixing: M, shape (..., n, n). strength: alpha, shape (...). basis: A, shape (..., n, r, d).

    Returns:
        C, shape (..., n, r, d). Clauses: MIX-2, MIX-3. Source: ours.
    """
    return _mix(strength, _mixer(mixing).mT, basis)


def add_mixed(x: Tensor, basis: Tensor, mixed: Tensor) -> Tensor:
    """``y = x + z C``, ``z = A x``, for inference: autograd does not see through the rounding to the dtype of x.

    Args:
        x: shape (..., d), any floating dtype. basis: A, shape (n, r, d). mixed: C of :func:`mixed_basis`, that shape.

    Returns:
        y, shape and dtype of x; computed in the dtype of the basis. Clauses: MIX-2, MIX-10. Source: ours.
    """
    return _add_mixed(x, basis, mixed)[0]


def add_mixed_by_sums(x: Tensor, basis: Tensor, mixed: Tensor) -> Tensor:
    """:func:`add_mixed` for few tokens, as sums of products: in float32 on every device, and without large kernels."""
    tokens = x.reshape(-1, 1, x.shape[-1]).to(basis.dtype)
    streams = (tokens * basis.flatten(0, 1)).sum(-1, keepdim=True)
    return (tokens[:, 0] + (streams * mixed.flatten(0, 1)).sum(1)).to(x.dtype).view(x.shape)


def _add_mixed(x: Tensor, basis: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
    with without_autocast(x):
        tokens = x.reshape(-1, x.shape[-1]).to(basis.dtype)
        streams = tokens @ basis.flatten(0, 1).T  # on a GPU in the precision that the user allows: see the module
        y = torch.addmm(tokens, streams, mixed.flatten(0, 1)).to(x.dtype)
    return torch.ops.aten._unsafe_view(y, x.shape), streams  # a view of autograd could not be changed in place


class _ResidualMixing(torch.autograd.Function):
    """Keeps y rather than x where both have the precision of the parameters: what follows keeps y in any case."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mixing: Tensor, strength: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        return _add_mixed(x, basis, mixed_basis(mixing, strength, basis))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        (x, mixing, strength, basis), (y, streams) = inputs, output
        ctx.mark_non_differentiable(streams)
        ctx.set_materialize_grads(False)
        ctx.keeps_y = x.dtype == basis.dtype
        ctx.save_for_backward(y if ctx.keeps_y else x, streams, mixing, strength, basis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
        """With ``w = A y'``: ``x' = y' + w E``, ``E = alpha D A``, and from sums over tokens the gradients of M, alpha
        and A. ``W = sum w z^T`` holds ``<A_i, P_j>``, ``P = sum z y'^T``; and ``Q = sum w x^T = sum w y^T - W C``.
        """
        if grad_y is None:
            return None, None, None, None
        kept, streams, mixing, strength, basis = ctx.saved_tensors
        needs_x, needs_mixing, needs_strength, needs_basis = ctx.needs_input_grad
        n, rank, d = basis.shape
        grad_x = grad_mixing = grad_strength = grad_basis = None
        with without_autocast(kept):
            upstream = grad_y.reshape(-1, d).to(basis.dtype)
            flat, mixer = basis.flatten(0, 1), _mixer(mixing)
            read_back = upstream @ flat.T
            if needs_x:
                mixed_back = _mix(strength, mixer, basis).flatten(0, 1)
                grad_x = torch.addmm(upstream, read_back, mixed_back).to(kept.dtype).view(kept.shape)
            if not (needs_mixing or needs_strength or needs_basis):
                return grad_x, None, None, None
            overlap = read_back.T @ streams
            correlation = overlap.view(n, rank, n, rank).diagonal(dim1=1, dim2=3).sum(-1)
            grad_mixing = strength * correlation
            # D first: near M = I the difference of two sums would lose its digits.
            grad_strength = (mixer * correlation).sum().reshape(strength.shape)
            if needs_basis:
                streams_upstream = streams.T @ upstream
                read_back_x = read_back.T @ kept.reshape(-1, d).to(basis.dtype)
                if ctx.keeps_y:
                    read_back_x = read_back_x - overlap @ mixed_basis(mixing, strength, basis).flatten(0, 1)
                grad_basis = _mix(strength, mixer, streams_upstream.view(basis.shape))
                grad_basis = grad_basis + _mix(strength, mixer.T, read_back_x.view(basis.shape))
        return grad_x, grad_mixing, grad_strength, grad_basis


def _mixer(mixing: Tensor) -> Tensor:
    """``D = M - I``."""
    return mixing - torch.eye(mixing.shape[-1], dtype=mixing.dtype, device=mixing.device)


def _mix(strength: Tensor, mixer: Tensor, rows: Tensor) -> Tensor:
    """(..., n, r, d) -> ``alpha D rows``, D acting on the axis of streams."""
    with without_autocast(rows):
        return ((strength.reshape(*mixer.shape[:-2], 1, 1) * mixer) @ rows.flatten(-2)).view(rows.shape)


def adapter_strength(gate_logit: Tensor, basis: Tensor) -> Tensor:
    """``alpha = sigmoid(gamma) / kappa``, ``kappa = (trace (A A^T)^8)^(1/8)``, batched over leading axes.

    Args:
        gate_logit: gamma, shape (...). basis: A, shape (..., n, r, d).

    Returns:
        alpha, shape (...); NaN where A is zero.

    Raises: DtypeError. Clauses: MIX-5, MIX-6, GRAD-6. Source: ours.
    """
    require_floats(gate_logit=gate_logit, basis=basis)
    gate: Tensor = _Sigmoid.apply(gate_logit)
    return gate / squared_norm_bound(basis)


class _Sigmoid(torch.autograd.Function):
    """Autograd's own sigmoid differentiates to ``s (1 - s)``, which loses its digits for an open gate."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logit: Tensor) -> Tensor:
        return logit.sigmoid()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_gate: Tensor) -> Tensor:
        (logit,) = ctx.saved_tensors
        return grad_gate * logit.sigmoid() * (-logit).sigmoid()


def squared_norm_bound(basis: Tensor) -> Tensor:
    """kappa of ``basis`` (..., n, r, d), shape (...). Clauses: MIX-6, GRAD-6. Source: ours."""
    bound: Tensor = _SquaredNormBound.apply(basis)[0]
    return bound


class _SquaredNormBound(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(basis: Tensor) -> tuple[Tensor, Tensor]:
        with without_autocast(basis):
            flat = basis.flatten(-3, -2)
            # kappa >= ||A||^2 has no slack to give to TF32, which a user may have allowed on a GPU.
            gram = (flat.double() @ flat.double().mT).to(flat.dtype) if flat.is_cuda else flat @ flat.mT
            trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
            normalised = gram / trace[..., None, None]
            squared = normalised @ normalised
            fourth = squared @ squared
            trace_eighth = (fourth * fourth.mT).sum((-2, -1))
            kappa = trace * trace_eighth**0.125
            seventh = fourth @ squared @ normalised
            return kappa, seventh * (kappa / (trace * trace_eighth))[..., None, None]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_kappa: Tensor | None, *_: Tensor) -> Tensor | None:
        if grad_kappa is None:
            return None
        basis, weighted_seventh = ctx.saved_tensors
        with without_autocast(basis):
            grad_flat = 2 * grad_kappa[..., None, None] * (weighted_seventh @ basis.flatten(-3, -2))
        return grad_flat.view(basis.shape)


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Structural arithmetic stays in the dtype of the parameters (MIX-10)."""
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)

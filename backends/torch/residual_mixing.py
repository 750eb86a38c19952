"""Residual mixing in PyTorch: one layer's streams, with the gradient in closed form, and the gate's strength."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from reference.errors import ShapeError


def residual_mixing(x: Tensor, mixing: Tensor, strength: Tensor, basis: Tensor) -> Tensor:
    """``y = x + alpha sum_i A_i^T (sum_j M_ij z_j - z_i)``, ``z_i = A_i x``.

    Args:
        x: residual stream, shape (..., d), any floating dtype.
        mixing: M, shape (n, n). strength: alpha, one value. basis: A, shape (n, r, d). All float32 (or float64).

    Returns:
        y, shape and dtype of x. What is added to x is computed in the parameters' dtype.

    Raises: ShapeError if there is more than one strength. Clauses: MIX-2..MIX-4, MIX-10, GRAD-4..GRAD-7. Source: ours.
    """
    if strength.numel() != 1:
        raise ShapeError(
            "strength",
            got=tuple(strength.shape),
            allowed="a single value",
            remedy="use one gate per layer: one per stream would let the adapter expand",
        )
    mixed: Tensor = _ResidualMixing.apply(x, mixing, strength, basis)
    return mixed


class _ResidualMixing(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mixing: Tensor, strength: Tensor, basis: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            tokens = x.reshape(-1, x.shape[-1]).to(basis.dtype)
            flat = basis.flatten(0, 1)
            moved = _mix(tokens @ flat.T, _mixer(mixing))
            return torch.addmm(tokens, moved * strength, flat).to(x.dtype).view(x.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, mixing, strength, basis = ctx.saved_tensors
        needs_x, needs_mixing, needs_strength, needs_basis = ctx.needs_input_grad
        with torch.autocast(x.device.type, enabled=False):
            tokens = x.reshape(-1, x.shape[-1]).to(basis.dtype)
            upstream = grad_output.reshape(-1, x.shape[-1]).to(basis.dtype)
            flat = basis.flatten(0, 1)
            streams, grad_streams = tokens @ flat.T, upstream @ flat.T
            mixer = _mixer(mixing)
            moved_back = _mix(grad_streams, mixer.T)
            grad_x = grad_mixing = grad_strength = grad_basis = None
            if needs_x:
                grad_x = torch.addmm(upstream, moved_back * strength, flat).to(x.dtype).view(x.shape)
            if needs_mixing or needs_strength:
                n = mixing.shape[0]
                by_stream = (tensor.view(-1, n, basis.shape[1]) for tensor in (grad_streams, streams))
                correlation = torch.einsum("tir,tjr->ij", *by_stream)
                grad_mixing = strength * correlation
                # sum_t u . (M z - z) from the n x n correlation: no second pass over the tokens
                grad_strength = (mixer * correlation).sum().reshape(strength.shape)
            if needs_basis:
                moved = _mix(streams, mixer)
                grad_basis = (strength * (moved.T @ upstream + moved_back.T @ tokens)).view(basis.shape)
        return grad_x, grad_mixing, grad_strength, grad_basis


def _mixer(mixing: Tensor) -> Tensor:
    """``D = M - I``."""
    return mixing - torch.eye(mixing.shape[0], dtype=mixing.dtype, device=mixing.device)


def _mix(streams: Tensor, mixer: Tensor) -> Tensor:
    """(tokens, n r) -> what mixing adds to each stream: ``(D (x) I_r) z``."""
    tokens, width = streams.shape
    n = mixer.shape[0]
    return (mixer @ streams.view(tokens, n, width // n)).view(tokens, width)


def adapter_strength(gate_logit: Tensor, basis: Tensor) -> Tensor:
    """``alpha = sigmoid(gamma) / kappa``, ``kappa = (trace (A A^T)^8)^(1/8)``, batched over leading axes.

    Args:
        gate_logit: gamma, shape (...). basis: A, shape (..., n, r, d).

    Returns:
        alpha, shape (...); NaN where A is zero.

    Clauses: MIX-5, MIX-6, GRAD-6. Source: ours.
    """
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
        with torch.autocast(basis.device.type, enabled=False):
            flat = basis.flatten(-3, -2)
            gram = flat @ flat.mT
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
        with torch.autocast(basis.device.type, enabled=False):
            grad_flat = 2 * grad_kappa[..., None, None] * (weighted_seventh @ basis.flatten(-3, -2))
        return grad_flat.view(basis.shape)

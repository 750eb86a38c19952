"""Residual mixing in PyTorch: one layer's streams, with the gradient in closed form, and the gate's strength.

Matrix products on a GPU are made in TF32 where ``torch.set_float32_matmul_precision`` allows that, against MIX-10;
those of the Triton kernels never are.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from backends.torch.checks import require_floats, require_one_strength
from backends.torch.differentiation import in_transform, outputs_of
from reference.errors import ShapeError

_NOTHING = nullcontext()


def residual_mixing(x: Tensor, mixing: Tensor, strength: Tensor, basis: Tensor) -> Tensor:
    """``y = x + alpha sum_i A_i^T (sum_j M_ij z_j - z_i)``, ``z_i = A_i x``.

    Args:
        x: residual stream, shape (..., d), any floating dtype.
        mixing: M, shape (n, n). strength: alpha, one value. basis: A, shape (n, r, d). All float32 (or float64).

    Returns:
        y, shape and dtype of x; computed in the parameters' dtype, or in float64 if x is.

    Raises: DtypeError; ShapeError if the sizes do not fit, or there is more than one strength.
    Clauses: MIX-2..MIX-4, MIX-10, GRAD-4..GRAD-7.
    """
    require_floats(x=x, mixing=mixing, strength=strength, basis=basis)
    require_one_strength(strength)
    if basis.ndim != 3 or 0 in basis.shape or mixing.shape != (len(basis),) * 2 or x.shape[-1:] != basis.shape[2:]:
        raise ShapeError(
            "x",
            got=f"{tuple(x.shape)} with mixing {tuple(mixing.shape)} and basis {tuple(basis.shape)}",
            allowed="(..., d) with (n, n) and (n, r, d)",
            remedy="build the adapter with the model's hidden_size",
        )
    if x.dtype == torch.float64:  # which float32 would round
        mixing, strength, basis = mixing.double(), strength.double(), basis.double()
    inputs = (x, mixing, strength, basis)
    if not torch.is_grad_enabled() or not (in_transform() or any(one.requires_grad for one in inputs)):
        return _ResidualMixing.forward(*inputs)[0]  # without what autograd costs: half the time for one token
    y: Tensor = outputs_of(_ResidualMixing, *inputs)[0]
    return y


def mixed_basis(mixing: Tensor, strength: Tensor, basis: Tensor) -> Tensor:
    """``C = alpha (M - I)^T A``: mixing acts on the basis, once, not on each token: ``y = x + z C``, ``z = A x``.

    Args:
        mixing: M, shape (..., n, n). strength: alpha, shape (...). basis: A, shape (..., n, r, d).

    Returns:
        C, shape (..., n, r, d). Clauses: MIX-2, MIX-3.
    """
    *leading, rank, d = basis.shape
    with without_autocast(basis):
        scaled = strength.reshape(*mixing.shape[:-2], 1, 1) * _mixer(mixing)
        return (scaled.mT @ basis.reshape(*leading, rank * d)).view(basis.shape)


def add_mixed(x: Tensor, basis: Tensor, mixed: Tensor) -> Tensor:
    """``y = x + z C``, ``z = A x``, for inference: autograd does not see through the rounding to the dtype of x.

    Args:
        x: shape (..., d), any floating dtype. basis: A, shape (n r, d). mixed: C of :func:`mixed_basis`, that shape.

    Returns:
        y, shape and dtype of x; computed in the dtype of the basis. Clauses: MIX-2, MIX-10.
    """
    with without_autocast(x):
        tokens = x.reshape(-1, x.shape[-1]).to(basis.dtype)
        # The products are on a GPU in the precision that the user allows: see the module.
        return torch.addmm(tokens, tokens @ basis.T, mixed).to(x.dtype).view(x.shape)


def add_mixed_by_sums(x: Tensor, basis: Tensor, mixed: Tensor) -> Tensor:
    """:func:`add_mixed` for few tokens, as sums of products: in float32 on every device, and without large kernels."""
    tokens = x.reshape(-1, 1, x.shape[-1]).to(basis.dtype)
    streams = (tokens * basis).sum(-1, keepdim=True)
    return (tokens[:, 0] + (streams * mixed).sum(1)).to(x.dtype).view(x.shape)


class _ResidualMixing(torch.autograd.Function):
    """Keeps y rather than x where both have the precision of the parameters: what follows keeps y in any case.

    The backward pass is made of torch's own operations on what is kept, so that it can itself be differentiated: y and
    the streams are outputs of this function, which pass on what reaches them through its gradient.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mixing: Tensor, strength: Tensor, basis: Tensor) -> tuple[Tensor, ...]:
        flat, mixer = basis.flatten(0, 1), stream_mixer(mixing, basis)
        with without_autocast(x):
            tokens = x.reshape(-1, x.shape[-1]).to(basis.dtype)
            streams = tokens @ flat.T
            y = torch.addmm(tokens, streams @ mixer.T, strength.reshape(()) * flat).to(x.dtype)
        if y.shape != x.shape:  # a view of autograd could not be changed in place
            y = torch.ops.aten._unsafe_view(y, x.shape)
        return y, streams, mixer

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        (x, mixing, strength, basis), (y, streams, mixer) = inputs, output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(mixer)
        ctx.keeps_y = x.dtype == basis.dtype
        ctx.save_for_backward(y if ctx.keeps_y else x, streams, mixing, strength, basis, mixer)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, grad_streams: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
        if grad_y is None and grad_streams is None:
            return None, None, None, None
        kept, streams, mixing, strength, basis, mixer = ctx.saved_tensors
        if torch.is_grad_enabled():  # this gradient may be differentiated: again, in operations that autograd sees
            mixer = stream_mixer(mixing, basis)
        grad_y = torch.zeros_like(kept) if grad_y is None else grad_y
        grad_x, grad_mixing, grad_strength, grad_basis = mixing_gradients(
            grad_y, kept, streams, mixer, strength, basis, keeps_y=ctx.keeps_y, needed=ctx.needs_input_grad
        )
        if grad_streams is None:
            return grad_x, grad_mixing, grad_strength, grad_basis
        # Only a second derivative comes here: what reached z = A x itself goes on to x and A.
        with without_autocast(kept):
            tokens = kept.reshape(-1, basis.shape[-1]).to(basis.dtype)
            if ctx.keeps_y:
                tokens = tokens - streams @ mixer.T @ (strength.reshape(()) * basis.flatten(0, 1))
            if grad_x is not None:
                grad_x = grad_x + (grad_streams @ basis.flatten(0, 1)).to(kept.dtype).view(kept.shape)
            if grad_basis is not None:
                grad_basis = grad_basis + (grad_streams.T @ tokens).view(basis.shape)
        return grad_x, grad_mixing, grad_strength, grad_basis


def mixing_gradients(
    grad_y: Tensor,
    kept: Tensor,
    streams: Tensor,
    mixer: Tensor,
    strength: Tensor,
    basis: Tensor,
    *,
    keeps_y: bool = False,
    needed: Sequence[bool] = (True, True, True, True),
) -> tuple[Tensor | None, ...]:
    """The gradients of x, M, alpha and A in torch's own operations, from x (or y), the streams and K.

    With ``K = (M - I) x 1_r``, the streams z, ``m = K z``, ``w = A y'``, ``u = K^T w`` and ``B = alpha A``:
    ``x' = y' + B^T u``, and over sums of tokens ``A' = alpha (m y'^T + u x^T)``, where ``u x^T = u y^T - (u m^T) B``,
    and from ``w z^T`` the gradients of M and alpha. So ordered, no product leaves the range of float32 before they do.

    Clauses: GRAD-4..GRAD-7.
    """
    needs_x, needs_mixing, needs_strength, needs_basis = needed
    n, rank, d = basis.shape
    grad_x = grad_mixing = grad_strength = grad_basis = None
    with without_autocast(kept):
        flat = basis.reshape(n * rank, d)
        scaled = strength.reshape(()) * flat
        upstream = grad_y.reshape(-1, d).to(basis.dtype)
        read_back = upstream @ flat.T
        pulled = read_back @ mixer
        if needs_x:
            grad_x = torch.addmm(upstream, pulled, scaled).to(kept.dtype).view(kept.shape)
        if needs_mixing or needs_strength:
            overlap = read_back.T @ streams
            grad_mixing = strength * overlap.view(n, rank, n, rank).diagonal(dim1=1, dim2=3).sum(-1)
            # M - I first: near M = I the difference of two sums would lose its digits.
            grad_strength = (mixer * overlap).sum().reshape(strength.shape)
        if needs_basis:
            moved = streams @ mixer.T
            flat_grad = torch.addmm(moved.T @ upstream, pulled.T, kept.reshape(-1, d).to(basis.dtype))
            if keeps_y:
                flat_grad = torch.addmm(flat_grad, pulled.T @ moved, scaled, alpha=-1)
            grad_basis = (strength.reshape(()) * flat_grad).view(basis.shape)
    return grad_x, grad_mixing, grad_strength, grad_basis


def stream_mixer(mixing: Tensor, basis: Tensor) -> Tensor:
    """``K = (M - I) x 1_r``, shape (n r, n r): what the streams of a token gain, before alpha."""
    return torch.kron(_mixer(mixing), torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device))


def _mixer(mixing: Tensor) -> Tensor:
    return mixing - torch.eye(mixing.shape[-1], dtype=mixing.dtype, device=mixing.device)


def adapter_strength(gate_logit: Tensor, basis: Tensor) -> Tensor:
    """``alpha = sigmoid(gamma) / kappa``, ``kappa = (trace (A A^T)^8)^(1/8)``, batched over leading axes.

    Args:
        gate_logit: gamma, shape (...). basis: A, shape (..., n, r, d).

    Returns:
        alpha, shape (...); NaN where A is zero.

    Raises: DtypeError, ShapeError. Clauses: MIX-5, MIX-6, GRAD-6, GRAD-7.
    """
    require_floats(gate_logit=gate_logit, basis=basis)
    if basis.ndim < 3:
        raise ShapeError(
            "basis", got=tuple(basis.shape), allowed="(..., n, r, d)", remedy="give each stream r directions"
        )
    strength: Tensor = outputs_of(_Strength, gate_logit, basis)[0]
    return strength


def _sigmoid(logit: Tensor) -> Tensor:
    gate: Tensor = outputs_of(_Sigmoid, logit)
    return gate


class _Sigmoid(torch.autograd.Function):
    """Autograd's own sigmoid differentiates to ``s (1 - s)``, which loses its digits for an open gate."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logit: Tensor) -> Tensor:
        return logit.sigmoid()

    @staticmethod
    def in_forward_mode(logit: Tensor) -> Tensor:
        """The same value in operations whose derivatives keep their digits on both sides."""
        small = torch.where(logit < 0, logit, -logit).exp()
        return torch.where(logit < 0, small, 1) / (1 + small)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_gate: Tensor) -> Tensor:
        (logit,) = ctx.saved_tensors
        sigmoid = _sigmoid if torch.is_grad_enabled() else torch.sigmoid
        return grad_gate * sigmoid(logit) * sigmoid(-logit)


class _Strength(torch.autograd.Function):
    """gamma, basis -> alpha; and what its gradient is made of: the gate, kappa, ``kappa N^7 / (trace trace N^8)``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logit: Tensor, basis: Tensor) -> tuple[Tensor, ...]:
        gate, (kappa, weighted_seventh) = logit.sigmoid(), _squared_norm_bound(basis)
        return gate / kappa, gate, kappa, weighted_seventh

    @staticmethod
    def in_forward_mode(logit: Tensor, basis: Tensor) -> tuple[Tensor]:
        return (_Sigmoid.in_forward_mode(logit) / _squared_norm_bound(basis)[0],)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    def backward(ctx: Any, grad_strength: Tensor | None, *_: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if grad_strength is None:
            return None, None
        logit, basis, strength, gate, kappa, weighted_seventh = ctx.saved_tensors
        closed = (-logit).sigmoid()
        if torch.is_grad_enabled():  # this gradient may be differentiated: again, in operations that autograd sees
            gate, closed = _sigmoid(logit), _sigmoid(-logit)
            kappa, weighted_seventh = _squared_norm_bound(basis)
        grad_logit = grad_strength / kappa * gate * closed
        if not ctx.needs_input_grad[1]:
            return grad_logit, None
        upstream = -2 * grad_strength
        grad_kappa = upstream * (strength / kappa)
        # For a small basis 1 / kappa^2 may leave the range where the gradient does not: then 1 / kappa comes last.
        fits = grad_kappa.abs() < torch.inf
        grad_kappa = torch.where(fits, grad_kappa, upstream * strength)[..., None, None]
        with without_autocast(basis):
            weighted_seventh = weighted_seventh / kappa.masked_fill(fits, 1)[..., None, None]
            grad_basis = (grad_kappa * (weighted_seventh @ basis.flatten(-3, -2))).view(basis.shape)
        return grad_logit, grad_basis


def _squared_norm_bound(basis: Tensor) -> tuple[Tensor, Tensor]:
    """kappa of ``basis`` (..., n, r, d), and ``kappa N^7 / (trace trace N^8)``. Clauses: MIX-6, GRAD-6."""
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


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Structural arithmetic stays in the dtype of the parameters (MIX-10)."""
    if tensor.is_meta or not (torch.compiler.is_compiling() or torch.is_autocast_enabled(tensor.device.type)):
        return _NOTHING  # entering the other takes as long as a token takes
    return torch.autocast(tensor.device.type, enabled=False)

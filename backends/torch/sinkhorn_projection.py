"""Sinkhorn projection in PyTorch: all layers in one call, gradient in closed form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from reference.errors import NonFiniteError, ShapeError
from reference.sinkhorn_projection import checked_iterations

ROW, COLUMN = -1, -2  # the axis that a step sums over


def sinkhorn_projection(mix_logits: Tensor, iterations: int = 20) -> Tensor:
    """Project logits (..., n, n) onto the Birkhoff polytope, in float32 (float64 for float64 logits).

    The formula and the guarantees are those of :func:`reference.sinkhorn_projection`. Logits that are not finite give
    NaN in every entry of their matrix, so that no device synchronisation is needed to refuse them.

    Raises: ShapeError, ConfigError. Clauses: SINK-1..SINK-9, GRAD-1..GRAD-3. Source: ours.
    """
    if mix_logits.ndim < 2 or mix_logits.shape[ROW] != mix_logits.shape[COLUMN] or mix_logits.shape[ROW] == 0:
        raise ShapeError(
            "mix_logits",
            got=tuple(mix_logits.shape),
            allowed="(..., n, n) with n >= 1",
            remedy="pass one square matrix of logits per layer",
        )
    projected: Tensor = _SinkhornProjection.apply(mix_logits, checked_iterations(iterations))
    return projected


class _SinkhornProjection(torch.autograd.Function):
    @staticmethod
    def forward(ctx, mix_logits: Tensor, iterations: int) -> Tensor:  # type: ignore[no-untyped-def]
        logits = mix_logits.detach().to(torch.float64 if mix_logits.dtype == torch.float64 else torch.float32)
        # Zero, or NaN for the whole matrix if one logit is not finite: -inf alone would give finite values (SINK-9).
        poison = (logits * 0).sum(dim=(ROW, COLUMN), keepdim=True)
        log_matrix = logits - logits.amax(dim=(ROW, COLUMN), keepdim=True) + poison
        log_iterates = []
        for step in range(iterations):
            log_matrix = log_matrix.log_softmax(ROW)
            log_iterates.append(log_matrix)
            if step < iterations - 1:
                log_matrix = log_matrix.log_softmax(COLUMN)
                log_iterates.append(log_matrix)
        # In float32 the last softmax and the correction would cost 1e-6 in the sums at n = 16 (spec, note on SINK-5).
        plain = log_matrix.double().softmax(COLUMN)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(plain, torch.stack(log_iterates))
        ctx.logits_dtype = mix_logits.dtype
        row_sums = plain.sum(ROW, keepdim=True)
        largest = row_sums.amax(COLUMN, keepdim=True)
        return (plain / largest + (1 - row_sums / largest) / plain.shape[ROW]).to(logits.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_mixing: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        plain, log_iterates = ctx.saved_tensors
        grad_plain = _birkhoff_correction_vjp(plain, grad_mixing.to(plain.dtype))
        grad = plain * (grad_plain - (plain * grad_plain).sum(COLUMN, keepdim=True))
        grad = grad.to(log_iterates.dtype)
        softmaxes = log_iterates.exp()
        axis = ROW
        for index in range(len(softmaxes) - 1, -1, -1):
            grad = grad - softmaxes[index] * grad.sum(axis, keepdim=True)
            axis = COLUMN if axis == ROW else ROW
        return grad.to(ctx.logits_dtype), None


def _birkhoff_correction_vjp(plain: Tensor, grad_mixing: Tensor) -> Tensor:
    n = plain.shape[ROW]
    row_sums = plain.sum(ROW, keepdim=True)
    largest, first_argmax = row_sums.max(COLUMN, keepdim=True)
    row_grad = grad_mixing.sum(ROW, keepdim=True)
    per_row = (grad_mixing * plain).sum(ROW, keepdim=True) - row_sums * row_grad / n
    grad_largest = -per_row.sum(COLUMN, keepdim=True) / largest**2
    is_first_argmax = torch.arange(n, device=plain.device)[:, None] == first_argmax
    return grad_mixing / largest - row_grad / (n * largest) + is_first_argmax * grad_largest


def require_finite(field: str, values: Tensor) -> None:
    """Raise NonFiniteError if ``values`` holds NaN or infinity. Synchronises the device: not for hot paths."""
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError(
            field,
            got="NaN or infinity",
            allowed="finite values only",
            remedy="restore the last good adapter state; lower the learning rate of the parameter group",
        )

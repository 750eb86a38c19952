"""Sinkhorn projection in PyTorch: all layers in one call, gradient in closed form."""

from typing import Any

import torch
from torch import Tensor

from backends.torch.checks import require_square_logits
from backends.torch.differentiation import outputs_of
from reference.sinkhorn_projection import checked_iterations

FIRST, SECOND = 0, 1  # the axes of a matrix: a row step sums over the second index


def sinkhorn_projection(mix_logits: Tensor, iterations: int = 20) -> Tensor:
    """Project logits (..., n, n) onto the Birkhoff polytope, in float32 (float64 for float64 logits).

    The formula and the guarantees are those of :func:`reference.sinkhorn_projection`. Logits that are not finite give
    NaN in every entry of their matrix, so that no device synchronisation is needed to refuse them.

    Raises: DtypeError, ShapeError, ConfigError. Clauses: SINK-1..SINK-9, GRAD-1..GRAD-3, GRAD-7.
    """
    require_square_logits(mix_logits)
    projected: Tensor = outputs_of(_SinkhornProjection, mix_logits, checked_iterations(iterations))[0]
    return projected


class _SinkhornProjection(torch.autograd.Function):
    """Inside, matrices lie (n, n, batch): a step is then one vectorised call, five times faster for small n.

    The backward pass is made of torch's own operations on the steps. These are outputs of this function, so that what
    reaches them through the gradient is passed on when the gradient itself is differentiated.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(mix_logits: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
        n = mix_logits.shape[-1]
        logits = mix_logits.to(torch.float64 if mix_logits.dtype == torch.float64 else torch.float32)
        log_matrix = logits.reshape(-1, n, n).permute(1, 2, 0).contiguous()
        # Zero, or NaN for the whole matrix if one logit is not finite: -inf alone would give finite values (SINK-9).
        poison = (log_matrix * 0).sum(dim=(FIRST, SECOND), keepdim=True)
        log_matrix = log_matrix - log_matrix.amax(dim=(FIRST, SECOND), keepdim=True) + poison
        log_iterates = []
        for step in range(2 * iterations - 1):
            log_matrix = log_matrix.log_softmax(SECOND if step % 2 == 0 else FIRST)  # over a row, over a column
            log_iterates.append(log_matrix)
        # In float32 the last softmax and the correction would cost 1e-6 in the sums at n = 16 (spec, note on SINK-5).
        plain = log_matrix.double().softmax(FIRST)
        row_sums = plain.sum(SECOND, keepdim=True)
        largest = row_sums.max(FIRST, keepdim=True).values  # of equal ones the first, also where torch differentiates
        mixing = (plain / largest + (1 - row_sums / largest) / n).to(logits.dtype)
        return mixing.permute(2, 0, 1).reshape(mix_logits.shape), plain, torch.stack(log_iterates)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:])
        ctx.shape, ctx.dtype = inputs[0].shape, inputs[0].dtype

    @staticmethod
    def backward(
        ctx: Any, grad_mixing: Tensor | None, grad_plain: Tensor | None, grad_iterates: Tensor | None
    ) -> tuple[Tensor | None, None]:
        """Only a second derivative gives gradients of the plain matrix and of the steps."""
        if grad_mixing is None and grad_plain is None and grad_iterates is None:
            return None, None
        plain, log_iterates = ctx.saved_tensors
        n = len(plain)
        grad = torch.zeros_like(plain) if grad_plain is None else grad_plain
        if grad_mixing is not None:
            upstream = grad_mixing.reshape(-1, n, n).permute(1, 2, 0).to(plain.dtype)
            through_correction = _birkhoff_correction_vjp(plain, upstream)
            grad = through_correction if grad_plain is None else grad + through_correction
        grad = torch._softmax_backward_data(grad, plain, FIRST, plain.dtype).to(log_iterates.dtype)
        for step in range(len(log_iterates) - 1, -1, -1):
            axis = SECOND if step % 2 == 0 else FIRST
            if grad_iterates is not None:
                grad = grad + grad_iterates[step]
            grad = torch._log_softmax_backward_data(grad, log_iterates[step], axis, grad.dtype)
        return grad.permute(2, 0, 1).reshape(ctx.shape).to(ctx.dtype), None


def _birkhoff_correction_vjp(plain: Tensor, grad_mixing: Tensor) -> Tensor:
    n = len(plain)
    row_sums = plain.sum(SECOND, keepdim=True)
    largest, first_argmax = row_sums.max(FIRST, keepdim=True)
    row_grad = grad_mixing.sum(SECOND, keepdim=True)
    per_row = (grad_mixing * plain).sum(SECOND, keepdim=True) - row_sums * row_grad / n
    grad_largest = -per_row.sum(FIRST, keepdim=True) / largest**2
    is_first_argmax = torch.arange(n, device=plain.device)[:, None, None] == first_argmax
    return (grad_mixing - row_grad / n) / largest + is_first_argmax * grad_largest

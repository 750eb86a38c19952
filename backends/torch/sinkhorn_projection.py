"""Sinkhorn projection in PyTorch: all layers in one call, gradient in closed form."""

from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from backends.torch.checks import require_square_logits
from backends.torch.differentiation import in_transform, outputs_of, pulled_back
from reference.sinkhorn_projection import checked_iterations

FIRST, SECOND = 0, 1  # the axes of a matrix: a row step sums over the second index


def sinkhorn_projection(mix_logits: Tensor, iterations: int = 20) -> Tensor:
    """Project logits (..., n, n) onto the Birkhoff polytope, in float32 (float64 for float64 logits).

    The formula and the guarantees are those of :func:`reference.sinkhorn_projection`. Logits that are not finite give
    NaN in every entry of their matrix, so that no device synchronisation is needed to refuse them.

    Raises: DtypeError, ShapeError, ConfigError. Clauses: SINK-1..SINK-9, GRAD-1..GRAD-3, GRAD-7.
    """
    require_square_logits(mix_logits)
    iterations = checked_iterations(iterations)
    if torch.compiler.is_compiling() or in_transform():
        return _open_projection(mix_logits, iterations)[0]
    if torch.is_grad_enabled() and mix_logits.requires_grad:
        projected: Tensor = _Projection.apply(mix_logits, iterations)
        return projected
    return _project(mix_logits, iterations)[0]


def _open_projection(mix_logits: Tensor, iterations: int) -> tuple[Tensor]:
    projected: Tensor = outputs_of(_OpenProjection, mix_logits, iterations)[0]
    return (projected,)


def _project(mix_logits: Tensor, iterations: int, kept: list[Tensor] | None = None) -> tuple[Tensor, ...]:
    """M, the plain matrix, its largest row sum and where that is. The steps go into ``kept``, or two buffers in turn.

    Matrices lie (n, n, batch): a step is then one vectorised call, five times faster for small n.
    """
    n = mix_logits.shape[-1]
    logits = mix_logits.to(torch.float64 if mix_logits.dtype == torch.float64 else torch.float32)
    logits = logits.reshape(-1, n, n).permute(1, 2, 0).contiguous()
    # Zero, or NaN for the whole matrix if one logit is not finite: -inf alone would give finite values (SINK-9).
    poison = (logits - logits).sum((FIRST, SECOND), keepdim=True)
    log_matrix = (logits - logits.amax((FIRST, SECOND), keepdim=True)).add_(poison)
    other = torch.empty_like(log_matrix) if kept is None else None
    for axis in islice(cycle((SECOND, FIRST)), 2 * iterations - 1):  # over a row, over a column
        step = torch._log_softmax(log_matrix, axis, False, out=other)
        log_matrix, other = step, None if kept is not None else log_matrix
        if kept is not None:
            kept.append(step)
    # In float32 the last softmax and the correction would cost 1e-6 in the sums at n = 16 (spec, note on SINK-5).
    plain = torch._softmax(log_matrix.double(), FIRST, False)
    row_sums = plain.sum(SECOND, keepdim=True)
    largest, first = row_sums.max(FIRST, keepdim=True)  # of equal ones the first, also where torch differentiates
    mixing = torch.add(plain, largest - row_sums, alpha=1 / n).div_(largest).to(logits.dtype)
    return mixing.permute(2, 0, 1).reshape(mix_logits.shape), plain, largest, first


class _Projection(torch.autograd.Function):
    """The backward pass of a single derivative, in the fewest calls: for small matrices these are what it costs."""

    @staticmethod
    def forward(ctx: Any, mix_logits: Tensor, iterations: int) -> Tensor:
        ctx.iterations, ctx.steps = iterations, []
        mixing, *ctx.correction = _project(mix_logits, iterations, ctx.steps)
        ctx.save_for_backward(mix_logits)
        return mixing

    @staticmethod
    def backward(ctx: Any, grad_mixing: Tensor) -> tuple[Tensor, None]:
        (mix_logits,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # this gradient may be differentiated: again, in operations that autograd sees
            plain_formula = partial(_open_projection, iterations=ctx.iterations)
            return pulled_back(plain_formula, (mix_logits,), (grad_mixing,))[0], None
        steps = ctx.steps
        plain, *largest = ctx.correction
        grad = torch._softmax_backward_data(_correction_vjp(grad_mixing, plain, *largest), plain, FIRST, plain.dtype)
        grad = grad.to(steps[0].dtype)
        # Two buffers in turn; torch.autograd.grad(is_grads_batched=True) knows no operation with a given output.
        other = None if torch._C._functorch.is_legacy_batchedtensor(grad) else torch.empty_like(grad)
        for axis, step in zip(cycle((SECOND, FIRST)), reversed(steps), strict=False):
            pulled = torch._log_softmax_backward_data(grad, step, axis, step.dtype, out=other)
            grad, other = pulled, None if other is None else grad
        return grad.permute(2, 0, 1).reshape(mix_logits.shape).to(mix_logits.dtype), None


class _OpenProjection(torch.autograd.Function):
    """The same function where torch.compile, ``torch.func`` or a second derivative asks for it.

    The backward pass is made of torch's own operations on the steps. These are outputs of this function, so that what
    reaches them through the gradient is passed on when the gradient itself is differentiated.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(mix_logits: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
        steps: list[Tensor] = []
        mixing, plain, *_ = _project(mix_logits, iterations, steps)
        return mixing, plain, torch.stack(steps)

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
        grad = torch.zeros_like(plain) if grad_plain is None else grad_plain
        if grad_mixing is not None:
            largest = plain.sum(SECOND, keepdim=True).max(FIRST, keepdim=True)
            through_correction = _correction_vjp(grad_mixing, plain, *largest)
            grad = through_correction if grad_plain is None else grad + through_correction
        grad = torch._softmax_backward_data(grad, plain, FIRST, plain.dtype).to(log_iterates.dtype)
        for step in range(len(log_iterates) - 1, -1, -1):
            axis = SECOND if step % 2 == 0 else FIRST
            if grad_iterates is not None:
                grad = grad + grad_iterates[step]
            grad = torch._log_softmax_backward_data(grad, log_iterates[step], axis, grad.dtype)
        return grad.permute(2, 0, 1).reshape(ctx.shape).to(ctx.dtype), None


def _correction_vjp(grad_mixing: Tensor, plain: Tensor, largest: Tensor, first: Tensor) -> Tensor:
    """The gradient of the plain matrix P: ``(G - mean_j G) / m``, and what reaches m in the first row of that sum."""
    n = len(plain)
    upstream = grad_mixing.reshape(-1, n, n).permute(1, 2, 0).to(plain.dtype)
    centred = torch.sub(upstream, upstream.sum(SECOND, keepdim=True), alpha=1 / n)
    of_largest = -(centred * plain).sum((FIRST, SECOND), keepdim=True) / (largest * largest)
    return (centred / largest).scatter_add(FIRST, first.expand(1, n, -1), of_largest.expand(1, n, -1))

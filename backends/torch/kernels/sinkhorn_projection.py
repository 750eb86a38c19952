"""Sinkhorn projection in Triton: all matrices of a stack in one launch forward and in one launch backward.

A program holds ``BLOCK`` matrices, padded from n to the next power of two N.
"""

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor

from backends.torch.checks import require_square_logits
from backends.torch.differentiation import in_transform, pulled_back
from backends.torch.kernels.launch import INTERPRETED, device_of, power_of_two
from backends.torch.kernels.projection_kernels import backward_kernel, forward_kernel
from backends.torch.sinkhorn_projection import sinkhorn_projection as plain_projection
from reference.errors import ConfigError
from reference.sinkhorn_projection import checked_iterations

MOST_STREAMS = 64
ENTRIES = 2**16 if INTERPRETED else 128  # of one program, as long as that is more than one matrix


def sinkhorn_projection(mix_logits: Tensor, iterations: int = 20) -> Tensor:
    """Project logits (..., n, n), n <= 64, onto the Birkhoff polytope, in float32 (float64 for float64 logits).

    The same function as :func:`backends.torch.sinkhorn_projection.sinkhorn_projection`. Logits that are not finite give
    NaN in every entry of their matrix, in the gradient too. The backward pass recomputes the iteration; meanwhile it
    takes up to ``2K - 2`` times the memory of the logits, padded, and afterwards none. Plain
    PyTorch computes what the kernels do not: transforms of ``torch.func``, forward mode, the derivative of a gradient.

    Raises: DtypeError, ShapeError, ConfigError. Clauses: SINK-1..SINK-9, GRAD-1..GRAD-3, GRAD-7.
    """
    require_square_logits(mix_logits)
    if mix_logits.shape[-1] > MOST_STREAMS:
        raise ConfigError(
            "streams",
            got=mix_logits.shape[-1],
            allowed=f"at most {MOST_STREAMS} in the Triton kernel",
            remedy="take plain PyTorch, which has no limit: kernels='torch', or backends.torch.sinkhorn_projection",
        )
    if in_transform():
        return plain_projection(mix_logits, iterations)
    logits = mix_logits if mix_logits.dtype == torch.float64 else mix_logits.float()
    projected: Tensor = _projection(logits, checked_iterations(iterations))
    return projected


@torch.library.custom_op("crma::sinkhorn_projection_triton", mutates_args=())
def _projection(mix_logits: Tensor, iterations: int) -> Tensor:
    logits = mix_logits.contiguous()
    mixing = torch.empty_like(logits)
    if logits.numel():
        grid, settings = _launch(logits)
        with device_of(mix_logits=logits):
            forward_kernel[grid](logits, mixing, ITERATIONS=iterations, **settings)
    return mixing


@torch.library.custom_op("crma::sinkhorn_projection_triton_backward", mutates_args=())
def _projection_backward(mix_logits: Tensor, grad_mixing: Tensor, iterations: int) -> Tensor:
    logits, upstream = mix_logits.contiguous(), grad_mixing.contiguous()
    grad_logits = torch.empty_like(logits)
    if logits.numel():
        grid, settings = _launch(logits)
        steps = max(1, 2 * (iterations - 1))
        softmaxes = logits.new_empty((*grid, steps, settings["BLOCK"], settings["N"], settings["N"]))
        with device_of(mix_logits=logits, grad_mixing=upstream):
            backward_kernel[grid](logits, upstream, softmaxes, grad_logits, ITERATIONS=iterations, **settings)
    return grad_logits


@_projection_backward.register_fake
@_projection.register_fake
def _like_the_logits(mix_logits, *_):
    return torch.empty_like(mix_logits, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output):
    mix_logits, ctx.iterations = inputs
    ctx.save_for_backward(mix_logits)


def _backward(ctx, grad_mixing):
    (mix_logits,) = ctx.saved_tensors
    return _projection_backward(mix_logits, grad_mixing, ctx.iterations), None


_projection.register_autograd(_backward, setup_context=_setup_context)


def _setup_second_context(ctx, inputs, output):
    mix_logits, grad_mixing, ctx.iterations = inputs
    ctx.save_for_backward(mix_logits, grad_mixing)


def _second_backward(ctx, cotangent):
    """The derivative of the gradient is that of the plain formula."""

    def gradient(mix_logits, grad_mixing):
        return torch.func.vjp(lambda logits: plain_projection(logits, ctx.iterations), mix_logits)[1](grad_mixing)

    return *pulled_back(gradient, ctx.saved_tensors, (cotangent,)), None


_projection_backward.register_autograd(_second_backward, setup_context=_setup_second_context)


def _launch(logits: Tensor) -> tuple[tuple[int], dict[str, int]]:
    batch, n = logits[..., 0, 0].numel(), logits.shape[-1]
    settings = settings_for(batch, n)
    return (triton.cdiv(batch, settings["BLOCK"]),), {"batch": batch, "n": n, **settings}


def settings_for(batch: int, n: int) -> dict[str, int]:
    """Compile-time arguments. On a GPU a warp takes 128 entries, so that small matrices leave no lane idle."""
    padded = power_of_two(n)
    block = min(power_of_two(batch), max(1, ENTRIES // padded**2))
    return {"BLOCK": block, "N": padded, "num_warps": min(8, max(1, padded**2 * block // 256))}

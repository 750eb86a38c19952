"""Residual mixing in Triton: x is read once and y written once, the streams being computed while x is in flight.

The kernels over tokens know no streams, only a flat width n r. With ``D = M - I`` what is added to x is
``sum_j z_j (alpha sum_i D_ij A_i)``, so mixing acts on the basis, once per call, and not on every token:
``y = x + z C``, ``C = alpha D^T A``, ``z = A x``. Backwards ``x' = y' + w E``, ``E = alpha D A``, ``w = A y'``; and
with the sums over tokens ``P = sum z y'^T``, ``Q = sum w x^T`` (n r, d) the rest is of the parameters' size:
``A' = alpha (D P + D^T Q)``, ``M'_ij = alpha <A_i, P_j>``, ``alpha' = sum_ij D_ij <A_i, P_j>``.

Launches: forward two, one of them over tokens; backward four, two of them over tokens (one needs the whole rows of y',
the other sums over tokens). x and y' are then read three times in all rather than two: 4/3 of the least traffic.
"""

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor

from backends.torch.checks import require_floats, require_one_strength
from backends.torch.differentiation import in_transform, pulled_back
from backends.torch.kernels.basis_kernels import mix_basis, mix_gradients
from backends.torch.kernels.launch import blocks_for, device_of
from backends.torch.kernels.token_kernels import constants, gradient_kernel, token_kernel
from backends.torch.residual_mixing import add_mixed, mixed_basis, mixing_gradients, stream_mixer
from reference.errors import ConfigError, ShapeError

MOST_STREAMS, MOST_WIDTH = 64, 512


def residual_mixing(x: Tensor, mixing: Tensor, strength: Tensor, basis: Tensor) -> Tensor:
    """:func:`backends.torch.residual_mixing.residual_mixing` for n <= 64 and n r <= 512, computed in the basis' dtype.

    In float64 n r > 256 takes 144 KiB of shared memory, which GPUs of data centres have.
    Deterministic: sums over tokens are made in parts of a fixed order, without atomics. Plain PyTorch computes what the
    kernels do not: transforms of ``torch.func``, forward mode, and the derivative of a gradient.
    Raises: DtypeError, ShapeError, ConfigError. Clauses: MIX-2..MIX-4, MIX-10, GRAD-4..GRAD-7.
    """
    require_floats(x=x, mixing=mixing, strength=strength, basis=basis)
    require_one_strength(strength)
    n, rank, d = basis.shape
    if x.shape[-1:] != (d,) or mixing.shape != (n, n):
        raise ShapeError(
            "x, mixing",
            got=f"{tuple(x.shape)}, {tuple(mixing.shape)}",
            allowed=f"(..., {d}) and ({n}, {n}), as basis is {tuple(basis.shape)}",
            remedy="put the hidden axis of x last",
        )
    if n * rank > MOST_WIDTH or n > MOST_STREAMS:
        raise ConfigError(
            "streams, streams * rank",
            got=f"{n}, {n} * {rank} = {n * rank}",
            allowed=f"at most {MOST_STREAMS} and {MOST_WIDTH} in the Triton kernel",
            remedy="take plain PyTorch, which has no limit: kernels='torch', or backends.torch.residual_mixing",
        )
    if in_transform():
        return add_mixed(x, basis.flatten(0, 1), mixed_basis(mixing, strength, basis).flatten(0, 1))
    y, _ = _mixing(x, mixing.to(basis.dtype), strength.to(basis.dtype), basis)
    changed: Tensor = y
    return changed


@torch.library.custom_op("crma::residual_mixing_triton", mutates_args=())
def _mixing(x: Tensor, mixing: Tensor, strength: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """y, and the streams z (tokens, n r), which the backward pass needs."""
    tokens, flat = x.reshape(-1, x.shape[-1]).contiguous(), basis.flatten(0, 1).contiguous()
    y, streams = x.new_empty(x.shape), flat.new_empty((len(tokens), len(flat)))
    if len(tokens):
        with device_of(x=x, mixing=mixing, strength=strength, basis=basis):
            mixed = mix_basis(flat, mixing, strength, transposed=True)
            _over_tokens(tokens, flat, mixed, y, streams)
    return y, streams


@torch.library.custom_op("crma::residual_mixing_triton_backward", mutates_args=())
def _mixing_backward(
    grad_y: Tensor, x: Tensor, streams: Tensor, mixing: Tensor, strength: Tensor, basis: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tokens, upstream = (tensor.reshape(-1, x.shape[-1]).contiguous() for tensor in (x, grad_y))
    flat = basis.flatten(0, 1).contiguous()
    if not len(tokens):
        return torch.empty_like(x), torch.zeros_like(mixing), torch.zeros_like(strength), torch.zeros_like(basis)
    grad_x, read_back = x.new_empty(x.shape), torch.empty_like(streams)
    blocks = blocks_for(tokens, len(flat))
    width, d = flat.shape
    parts = flat.new_empty((2, blocks.splits, width, d))
    with device_of(x=x, grad_y=grad_y, mixing=mixing, strength=strength, basis=basis):
        _over_tokens(upstream, flat, flat, upstream, read_back, write=False)
        mixed = mix_basis(flat, mixing, strength, transposed=False)
        gradient_kernel[triton.cdiv(d, blocks.places), blocks.splits](
            upstream, tokens, streams, read_back, mixed, grad_x, parts, len(tokens), width, blocks.splits,
            d=d, STEPS=blocks.steps, BLOCK_T=blocks.tile, **constants(blocks, x, flat),
        )  # fmt: skip
        grad_mixing, grad_strength, grad_basis = mix_gradients(parts, flat, mixing, strength)
    return grad_x, grad_mixing, grad_strength.view(strength.shape), grad_basis.view(basis.shape)


@_mixing.register_fake
def _(x: Tensor, mixing: Tensor, strength: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    tokens = x.numel() // x.shape[-1]
    return x.new_empty(x.shape), basis.new_empty((tokens, basis.shape[0] * basis.shape[1]))


@_mixing_backward.register_fake
def _(grad_y, x, streams, mixing, strength, basis):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (x, mixing, strength, basis))


def _setup_context(ctx, inputs, output):
    x, mixing, strength, basis = inputs
    _, streams = output
    ctx.mark_non_differentiable(streams)
    ctx.save_for_backward(x, streams, mixing, strength, basis)


def _backward(ctx, grad_y, _):
    return _mixing_backward(grad_y, *ctx.saved_tensors)


_mixing.register_autograd(_backward, setup_context=_setup_context)


def _setup_second_context(ctx, inputs, output):
    grad_y, x, _, mixing, strength, basis = inputs
    ctx.save_for_backward(grad_y, x, mixing, strength, basis)


def _second_backward(ctx, *cotangents):
    """The derivative of the gradients is that of the plain formula, in which z follows x and A."""

    def gradients(grad_y, x, mixing, strength, basis):
        streams = x.reshape(-1, x.shape[-1]).to(basis.dtype) @ basis.flatten(0, 1).T
        return mixing_gradients(grad_y, x, streams, stream_mixer(mixing, basis), strength, basis)

    grad_y, x, *others = pulled_back(gradients, ctx.saved_tensors, cotangents)
    return grad_y, x, None, *others


_mixing_backward.register_autograd(_second_backward, setup_context=_setup_second_context)


def _over_tokens(x: Tensor, basis: Tensor, mixed: Tensor, y: Tensor, streams: Tensor, write: bool = True) -> None:
    """``streams = x A^T``, and ``y = x + streams C`` if ``write``: the launch in which a program sees whole rows."""
    blocks = blocks_for(x, len(basis))
    token_kernel[(triton.cdiv(len(x), blocks.rows),)](
        x, basis, mixed, y, streams, len(x), len(basis), d=x.shape[1], WRITE=write,
        BLOCK_T=blocks.rows, **constants(blocks, x, basis),
    )  # fmt: skip

"""The Triton kernels that see tokens: the streams and the write-back, and the gradients of both.

A row of x is ``d`` places; the basis and what is made of it are (n r, d), with n r padded to ``W``. Arithmetic is in
the dtype of the basis. Products for 16-bit x are ``tf32x3`` on a GPU: x itself is exact in tf32, other factors are
split in two parts, which keep 21 to 22 of their 24 bits, so the error is about that of float32 sums; wider x takes
``ieee``, which is slower, and so does n r > 128, where registers would not hold the parts. The interpreter multiplies
with NumPy in both cases.
"""

from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from backends.torch.kernels.launch import INTERPRETED, Blocks


def constants(blocks: Blocks, x: Tensor, basis: Tensor) -> dict[str, Any]:
    """The compile-time arguments of both kernels, but for BLOCK_T."""
    widest = 256 if basis.dtype.itemsize == 4 else 64  # with loads ahead shared memory suffices so far: see variants
    return {
        "BLOCK_D": blocks.places,
        "W": blocks.width,
        "PRECISION": "tf32x3" if x.dtype.itemsize == 2 and blocks.width <= 128 else "ieee",
        # Triton's interpreter cuts the last 16 bits off, where a GPU rounds to nearest even.
        "ROUND": INTERPRETED and x.dtype == torch.bfloat16,
        "num_warps": 8,
        "num_stages": 3 if blocks.width <= widest else 1,
    }


@triton.jit
def token_kernel(  # type: ignore[no-untyped-def]
    x_ptr, basis_ptr, mixed_ptr, y_ptr, streams_ptr, tokens, width,
    d: tl.constexpr, WRITE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, W: tl.constexpr,
    PRECISION: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """``streams = x A^T`` and, if ``WRITE``, ``y = x + streams C``; a program takes BLOCK_T whole rows.

    The second pass over the rows finds them in the L2 cache (see ``blocks_for``), so device memory sees each x once.
    """
    dtype: tl.constexpr = basis_ptr.dtype.element_ty
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]
    stream, place = tl.arange(0, W).to(tl.int64), tl.arange(0, BLOCK_D).to(tl.int64)[None, :]
    row, is_token, is_stream = x_ptr + token * d, token < tokens, stream[:, None] < width
    basis_row = basis_ptr + stream[:, None] * d
    streams = tl.full((BLOCK_T, W), 0.0, dtype)
    for start in range(0, d, BLOCK_D):
        at = start + place
        x = tl.load(row + at, mask=is_token & (at < d), other=0.0, eviction_policy="evict_last").to(dtype)
        basis = tl.load(basis_row + at, mask=is_stream & (at < d), other=0.0, eviction_policy="evict_last")
        streams = tl.dot(x, tl.trans(basis), streams, input_precision=PRECISION, out_dtype=dtype)
    tl.store(streams_ptr + token * width + stream[None, :], streams, mask=is_token & (stream[None, :] < width))
    if WRITE:
        mixed_row = mixed_ptr + stream[:, None] * d
        for start in range(0, d, BLOCK_D):
            at = start + place
            inside = is_token & (at < d)
            x = tl.load(row + at, mask=inside, other=0.0, eviction_policy="evict_first").to(dtype)
            mixed = tl.load(mixed_row + at, mask=is_stream & (at < d), other=0.0, eviction_policy="evict_last")
            # Added after the product: an accumulator of a tensor core is cut off, not rounded.
            y = x + tl.dot(streams, mixed, input_precision=PRECISION, out_dtype=dtype)
            if ROUND:
                y = _round_to_bfloat16(y)
            tl.store(y_ptr + token * d + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def gradient_kernel(  # type: ignore[no-untyped-def]
    upstream_ptr, x_ptr, streams_ptr, read_back_ptr, mixed_ptr, grad_ptr, parts_ptr, tokens, width, splits,
    d: tl.constexpr, STEPS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, W: tl.constexpr,
    PRECISION: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """``x' = y' + w E``; ``P = sum_t z y'^T`` and ``Q = sum_t w x^T`` into ``parts`` (2, splits, n r, d).

    A program takes BLOCK_D places of STEPS tiles, every ``splits``-th one, and writes its part of the sums: no atomics.
    Tiles go backwards, since the last of y' are still in the L2 cache from the launch before, which read it forwards.
    """
    dtype: tl.constexpr = mixed_ptr.dtype.element_ty
    split = tl.program_id(1)
    stream = tl.arange(0, W).to(tl.int64)
    at = tl.program_id(0).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    is_parameter = (stream[:, None] < width) & (at < d)
    mixed = tl.load(mixed_ptr + stream[:, None] * d + at, mask=is_parameter, other=0.0)
    streams_upstream = tl.full((W, BLOCK_D), 0.0, dtype)
    read_back_x = tl.full((W, BLOCK_D), 0.0, dtype)
    tiles = (tokens + BLOCK_T - 1) // BLOCK_T
    for step in range(STEPS):
        tile = tiles - 1 - (step * splits + split)
        token = tile.to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]
        is_token = (token >= 0) & (token < tokens)
        inside = is_token & (at < d)
        flat = token * width + stream[None, :]
        is_flat = is_token & (stream[None, :] < width)
        streams = tl.load(streams_ptr + flat, mask=is_flat, other=0.0)
        read_back = tl.load(read_back_ptr + flat, mask=is_flat, other=0.0)
        upstream = tl.load(upstream_ptr + token * d + at, mask=inside, other=0.0).to(dtype)
        x = tl.load(x_ptr + token * d + at, mask=inside, other=0.0).to(dtype)
        grad = upstream + tl.dot(read_back, mixed, input_precision=PRECISION, out_dtype=dtype)
        if ROUND:
            grad = _round_to_bfloat16(grad)
        tl.store(grad_ptr + token * d + at, grad.to(grad_ptr.dtype.element_ty), mask=inside)
        streams_upstream = tl.dot(
            tl.trans(streams), upstream, streams_upstream, input_precision=PRECISION, out_dtype=dtype
        )
        read_back_x = tl.dot(tl.trans(read_back), x, read_back_x, input_precision=PRECISION, out_dtype=dtype)
    part = (split.to(tl.int64) * width + stream[:, None]) * d + at
    tl.store(parts_ptr + part, streams_upstream, mask=is_parameter)
    tl.store(parts_ptr + (splits * width * d + part), read_back_x, mask=is_parameter)


@triton.jit
def _round_to_bfloat16(value):
    """float32 with the last 16 bits 0, to nearest even."""
    bits = value.to(tl.uint32, bitcast=True)
    bits = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16
    return tl.where(value == value, bits.to(tl.float32, bitcast=True), float("nan"))

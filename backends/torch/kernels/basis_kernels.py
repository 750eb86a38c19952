"""The Triton kernel that mixes the rows of the basis, or of sums shaped like it.

cuBLAS could multiply (n, n) by (n, r d) too, but in tf32 where a user allows that for the model; this stays float32.
"""

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from backends.torch.kernels.launch import INTERPRETED, SHORTEST, power_of_two


def mix_basis(flat: Tensor, mixing: Tensor, strength: Tensor, transposed: bool) -> Tensor:
    """``alpha D^T A`` if ``transposed``, else ``alpha D A``; A and the result (n r, d), ``D = M - I``."""
    mixed = torch.empty_like(flat)
    _launch(flat, flat, flat, mixing, strength, mixed, flat, HAS_P=not transposed, HAS_Q=transposed, HAS_BASIS=False)
    return mixed


def mix_gradients(parts: Tensor, flat: Tensor, mixing: Tensor, strength: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From P and Q in parts (2, splits, n r, d): the gradients of M (n, n), alpha () and A (n r, d)."""
    n = len(mixing)
    grad_basis, padded = torch.empty_like(flat), power_of_two(n, SHORTEST)
    products = flat.new_empty((triton.cdiv(flat.numel() // n, _block(flat, n)), padded, padded))
    _launch(
        parts[0], parts[1], flat, mixing, strength, grad_basis, products, HAS_P=True, HAS_Q=True, HAS_BASIS=True
    )  # fmt: skip
    correlation = products.sum(0)[:n, :n]  # <A_i, P_j>
    # D first: near M = I the difference of two sums would lose its digits.
    grad_strength = (correlation * (mixing - torch.eye(n, dtype=flat.dtype, device=flat.device))).sum()
    return strength * correlation, grad_strength, grad_basis


def _launch(
    p: Tensor, q: Tensor, flat: Tensor, mixing: Tensor, strength: Tensor, out: Tensor, products: Tensor, **has: bool
) -> None:
    n = len(mixing)
    columns, block = flat.numel() // n, _block(flat, n)
    splits = p.numel() // flat.numel()
    _mix_kernel[(triton.cdiv(columns, block),)](
        p, q, flat, mixing.contiguous(), strength, out, products, n, columns, splits, PARTS=power_of_two(splits), **has,
        N=power_of_two(n, SHORTEST), BLOCK=block, num_warps=warps_for(n),
    )  # fmt: skip


def _block(flat: Tensor, n: int) -> int:
    """Columns, of the r d, for one program."""
    return min(columns_for(n), power_of_two(flat.numel() // n, SHORTEST))


def columns_for(n: int) -> int:
    """Columns for a program at most: with more, registers do not hold the products of many streams (``variants``)."""
    if INTERPRETED:
        return 1024
    return 128 if n <= SHORTEST else 1024 // power_of_two(n)


def warps_for(n: int) -> int:
    """Warps of a program, likewise."""
    return 4 if n <= SHORTEST else 8


@triton.jit
def _mix_kernel(  # type: ignore[no-untyped-def]
    p_ptr, q_ptr, basis_ptr, mixing_ptr, strength_ptr, out_ptr, products_ptr, n, columns, splits,
    PARTS: tl.constexpr, HAS_P: tl.constexpr, HAS_Q: tl.constexpr, HAS_BASIS: tl.constexpr,
    N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``out = alpha (D sum P + D^T sum Q)``, and per program ``A (sum P)^T`` if ``HAS_BASIS``; all but M (n, r d)."""
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    side = tl.arange(0, N).to(tl.int64)
    row, other = side[:, None], side[None, :]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[None, :]
    is_entry = (row < n) & (at < columns)
    here = row * columns + at
    is_mixing = (row < n) & (other < n)
    mixer = tl.load(mixing_ptr + row * n + other, mask=is_mixing, other=0.0)
    mixer = (mixer - tl.where(is_mixing & (row == other), 1.0, 0.0)).to(dtype)
    size = n * columns
    out = tl.full((N, BLOCK), 0.0, dtype)
    if HAS_P:
        total = _sum_of_parts(p_ptr, here, is_entry, size, splits, PARTS)
        out = tl.dot(mixer, total, out, input_precision="ieee", out_dtype=dtype)
        if HAS_BASIS:
            basis = tl.load(basis_ptr + here, mask=is_entry, other=0.0)
            products = tl.dot(basis, tl.trans(total), input_precision="ieee", out_dtype=dtype)
            tl.store(products_ptr + (tl.program_id(0) * N * N + row * N + other), products)
    if HAS_Q:
        total = _sum_of_parts(q_ptr, here, is_entry, size, splits, PARTS)
        out = tl.dot(tl.trans(mixer), total, out, input_precision="ieee", out_dtype=dtype)
    tl.store(out_ptr + here, tl.load(strength_ptr) * out, mask=is_entry)


@triton.jit
def _sum_of_parts(ptr, here, is_entry, size, splits, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    total = tl.full(here.shape, 0.0, ptr.dtype.element_ty)
    for part in range(PARTS):
        there = here + part * size
        total += tl.load(ptr + there, mask=is_entry & (there < splits * size), other=0.0)
    return total

"""liger-kernel's Sinkhorn kernels as a function of logits alone; they exist only inside a larger operation.

Its kernel takes, per matrix, 2n further numbers for two gates, here zeros, and writes the gates as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.projections import ITERATIONS, package

EPSILON = 1e-6
KERNELS = ("liger_kernel.ops.mhc", "liger-kernel triton")


def project(logits: Tensor) -> Tensor:
    """(batch, n, n) float32 on a GPU, n a power of two -> its h_res, shape (batch, n, n)."""
    projected: Tensor = _Liger.apply(logits)
    return projected


class _Liger(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        mix = torch.nn.functional.pad(logits.flatten(1), (2 * logits.shape[-1], 0))
        bias, one = mix.new_zeros(mix.shape[1]), mix.new_ones(1)
        ctx.save_for_backward(mix, bias, one)
        _, _, matrix = package(*KERNELS).mhc_split_sinkhorn_fwd(
            mix, bias, one, one, one, tmax=ITERATIONS, pre_eps=0.0, sinkhorn_eps=EPSILON, post_mult=1.0
        )
        return matrix

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_matrix: Tensor) -> Tensor:
        mix, bias, one = ctx.saved_tensors
        grad: Tensor = package(*KERNELS).mhc_sinkhorn_bwd(
            mix, bias, one, grad_matrix.contiguous(), tmax=ITERATIONS, sinkhorn_eps=EPSILON
        )
        return grad

"""Sinkhorn projections to be timed on the same logits: this project's, plain loops, and other packages'.

The other packages iterate without a Birkhoff correction, some of them columns first, so they compute another matrix:
what they differ by from the reference is a difference of results; their worst row or column sum is what they leave.
"""

import importlib
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from backends.torch import sinkhorn_projection
from reference.errors import DeviceUnavailableError, MissingPackageError

ITERATIONS = 20
Projection = Callable[[Tensor], Tensor]
INSTALL = "pip install --no-deps -c constraints.txt {}"


def _crma(logits: Tensor) -> Tensor:
    return sinkhorn_projection(logits, ITERATIONS)


def _loop(logits: Tensor) -> Tensor:
    """The same map as this project's, its derivative left to autograd."""
    log_matrix = logits - logits.amax((-2, -1), keepdim=True)
    for _ in range(ITERATIONS - 1):
        log_matrix = log_matrix.log_softmax(-1).log_softmax(-2)
    plain = log_matrix.log_softmax(-1).softmax(-2)
    row_sums = plain.sum(-1, keepdim=True)
    largest = row_sums.amax(-2, keepdim=True)
    return plain / largest + (1 - row_sums / largest) / plain.shape[-1]


def _exponential_loop(logits: Tensor) -> Tensor:
    """The least that an iteration costs in plain operations: no shift, no logarithm, no correction; NaN can come."""
    matrix = logits.exp()
    for _ in range(ITERATIONS):
        matrix = matrix / matrix.sum(-1, keepdim=True)
        matrix = matrix / matrix.sum(-2, keepdim=True)
    return matrix


def permutation_mixture(streams: int, device: str) -> Projection:
    """``M = sum_k softmax(weights)_k P_k`` over all n! permutation matrices: (..., n!) -> (..., n, n).

    Doubly stochastic without an iteration, but another parametrization than a projection of n x n logits: 24 numbers
    for n = 4, and 40,320 for n = 8. Source: Y. Yang, J. Gao (2026), "mHC-lite", arXiv:2601.05732.
    """
    orders = torch.tensor(list(itertools.permutations(range(streams))), device=device)
    matrices = torch.nn.functional.one_hot(orders, streams).float().flatten(1)
    return lambda weights: (weights.softmax(-1) @ matrices).unflatten(-1, (streams, streams))


def _crma_triton(device: str) -> Projection:
    gpu_only("the Triton kernels", device)
    kernels = package("backends.torch.kernels", "triton")
    return lambda logits: kernels.sinkhorn_projection(logits, ITERATIONS)


def _hyper_connections(device: str) -> Projection:
    module = package("hyper_connections.mHCv2", "hyper-connections torch-einops-utils einops")
    return lambda logits: module.log_domain_sinkhorn_knopps(logits, iters=ITERATIONS)


def _hyper_connections_triton(device: str) -> Projection:
    gpu_only("the Triton kernel of hyper-connections", device)
    module = package("hyper_connections.triton_sinkhorn", "hyper-connections torch-einops-utils einops triton")
    # Not its triton_sinkhorn, which falls back to another function without a word.
    return lambda logits: module.TritonSinkhornFunction.apply(logits, ITERATIONS)


def _mhc_pytorch(device: str) -> Projection:
    module = package("mhc.sinkhorn_knopp", "mhc-pytorch  # Python >= 3.12")
    return lambda logits: module.apply_sinkhorn_knopp(logits, ITERATIONS)


def _pot(device: str) -> Projection:
    """Optimal transport with the cost -S, marginals of ones and entropy 1 is the limit of Sinkhorn on S."""
    batch = package("ot.batch", "POT scipy")

    def project(logits: Tensor) -> Tensor:
        ones = logits.new_ones(logits.shape[:-1])
        result = batch.solve_batch(
            -logits, reg=1.0, a=ones, b=ones, max_iter=ITERATIONS, tol=0.0, method="log_sinkhorn", grad="autodiff"
        )
        plan: Tensor = result.plan
        return plan

    return project


class _Liger(torch.autograd.Function):
    """liger-kernel's kernels, which exist only inside a larger operation: they take, per matrix, 2n further numbers for
    two gates, here zeros, and write the gates as well. float32 on a GPU, n a power of two.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, kernels: Any) -> Tensor:
        mix = torch.nn.functional.pad(logits.flatten(1), (2 * logits.shape[-1], 0))
        bias, one = mix.new_zeros(mix.shape[1]), mix.new_ones(1)
        ctx.save_for_backward(mix, bias, one)
        ctx.kernels = kernels
        _, _, matrix = kernels.mhc_split_sinkhorn_fwd(
            mix, bias, one, one, one, tmax=ITERATIONS, pre_eps=0.0, sinkhorn_eps=1e-6, post_mult=1.0
        )
        return matrix

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_matrix: Tensor) -> tuple[Tensor, None]:
        mix, bias, one = ctx.saved_tensors
        grad = ctx.kernels.mhc_sinkhorn_bwd(
            mix, bias, one, grad_matrix.contiguous(), tmax=ITERATIONS, sinkhorn_eps=1e-6
        )
        return grad, None


def _liger(device: str) -> Projection:
    gpu_only("liger-kernel", device)
    kernels = package("liger_kernel.ops.mhc", "liger-kernel triton")
    return lambda logits: _Liger.apply(logits, kernels)


PLAIN: dict[str, Projection] = {"crma": _crma, "loop": _loop, "exponential-loop": _exponential_loop}
#: name -> what makes it for a device
OF_PACKAGES: dict[str, Callable[[str], Projection]] = {
    "crma-triton": _crma_triton,
    "hyper-connections": _hyper_connections,
    "hyper-connections-triton": _hyper_connections_triton,
    "mhc-pytorch": _mhc_pytorch,
    "pot": _pot,
    "liger-kernel": _liger,
}
PROJECTIONS = (*PLAIN, *OF_PACKAGES, *(f"{name}-compiled" for name in (*PLAIN, "hyper-connections")))


def projection_named(name: str, device: str) -> Projection:
    """One of ``PROJECTIONS``. Raises: DeviceUnavailableError, MissingPackageError."""
    whole = name.removesuffix("-compiled")
    project = PLAIN[whole] if whole in PLAIN else OF_PACKAGES[whole](device)
    return project if name == whole else torch.compile(project, fullgraph=True, dynamic=False)


def package(module: str, requirement: str) -> Any:
    """Import ``module``. Raises: MissingPackageError with the command that installs ``requirement``."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            module,
            got=f"no package named {error.name}",
            allowed="an installed package",
            remedy=INSTALL.format(requirement),
        ) from error


def gpu_only(what: str, device: str) -> None:
    """Raise DeviceUnavailableError unless ``device`` is cuda."""
    if device != "cuda":
        raise DeviceUnavailableError(
            "device",
            got=device,
            allowed=f"cuda for {what}",
            remedy="pytest bench/ --bench-device=cuda on a machine with a GPU",
        )

"""The adapter of one layer, in the forms that are timed on the same x.

M and alpha are given, as in a model, where one call makes them for all layers; ``whole`` makes them as well. ``copy``
is the floor: x read once and y written once. Packages with hyper-connections mix n residual streams of full width, and
a block's output with them, which is other work; liger-kernel's kernel for it is timed at equal bytes, with streams of
width d / n, on a GPU.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from backends.torch.residual_mixing import adapter_strength, residual_mixing
from backends.torch.sinkhorn_projection import sinkhorn_projection
from bench.projections import ITERATIONS, gpu_only, package
from reference import AdapterConfig, init_parameters
from reference.initialization import GATE_LOGIT


class Layer(NamedTuple):
    """S (n, n), gamma (1,), A (n, r, d), and what follows from them: M (n, n), alpha (1,)."""

    mix_logits: Tensor
    gate_logit: Tensor
    basis: Tensor
    mixing: Tensor
    strength: Tensor


Mixing = Callable[[Tensor, Layer], Tensor]


def layer_of(hidden_size: int, device: str, gate_logit: float = GATE_LOGIT) -> Layer:
    """A layer with start values of seed 0, in float32."""
    values = init_parameters(AdapterConfig(hidden_size), 0, gate_logit=gate_logit)
    logits, gate, basis = (torch.tensor(value, dtype=torch.float32, device=device) for value in values)
    gate = gate.reshape(1)
    return Layer(logits, gate, basis, sinkhorn_projection(logits), adapter_strength(gate, basis))


def _crma(x: Tensor, layer: Layer) -> Tensor:
    return residual_mixing(x, layer.mixing, layer.strength, layer.basis)


def _whole(x: Tensor, layer: Layer) -> Tensor:
    mixing = sinkhorn_projection(layer.mix_logits, ITERATIONS)
    return residual_mixing(x, mixing, adapter_strength(layer.gate_logit, layer.basis), layer.basis)


def _autograd(x: Tensor, layer: Layer) -> Tensor:
    """The formula as written, its derivative left to autograd."""
    flat = layer.basis.flatten(0, 1)
    streams = (x.to(flat.dtype) @ flat.T).unflatten(-1, layer.basis.shape[:2])
    moved = layer.strength * (layer.mixing @ streams - streams)
    return (x + moved.flatten(-2) @ flat).to(x.dtype)


def _copy(x: Tensor, layer: Layer) -> Tensor:
    return x.clone()


def _triton() -> Mixing:
    kernels = package("backends.torch.kernels", "triton")
    return lambda x, layer: kernels.residual_mixing(x, layer.mixing, layer.strength, layer.basis)


def _liger() -> Mixing:
    functional: Any = package("liger_kernel.transformers.functional", "liger-kernel triton transformers")

    def mix(x: Tensor, layer: Layer) -> Tensor:
        tokens, n = x.numel() // x.shape[-1], len(layer.mixing)
        streams = x.view(tokens, n, -1)
        gate, matrix = layer.mixing.new_zeros(tokens, n), layer.mixing.expand(tokens, n, n).contiguous()
        mixed: Tensor = functional.liger_mhc_post_res(streams, x.new_zeros(tokens, streams.shape[-1]), gate, matrix)
        return mixed.view(x.shape)

    return mix


PLAIN = {"copy": _copy, "crma": _crma, "crma-whole": _whole, "autograd": _autograd}
MIXINGS = (*PLAIN, "crma-compiled", "autograd-compiled", "crma-triton", "liger-kernel")


def mixing_named(name: str, device: str) -> Mixing:
    """One of ``MIXINGS``. Raises: DeviceUnavailableError, MissingPackageError."""
    if name in ("crma-triton", "liger-kernel"):
        gpu_only(name, device)
        return _triton() if name == "crma-triton" else _liger()
    mix = PLAIN[name.removesuffix("-compiled")]
    return torch.compile(mix, fullgraph=True, dynamic=False) if name.endswith("-compiled") else mix

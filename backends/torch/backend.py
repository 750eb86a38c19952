"""PyTorch behind the backend interface: gradients come out of autograd, as a user would get them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from backends.interface import Gradients
from backends.torch.residual_mixing import adapter_strength, residual_mixing
from backends.torch.sinkhorn_projection import sinkhorn_projection
from reference.errors import DeviceUnavailableError

Array = NDArray[Any]


class TorchBackend:
    """``torch-cpu`` or ``torch-cuda``, in plain PyTorch. Clauses: BACK-1, ERR-3.

    Raises: DeviceUnavailableError if there is no CUDA device for ``torch-cuda``.
    """

    parameter_dtype: np.dtype[Any] = np.dtype(np.float32)

    def __init__(self, name: str) -> None:
        device = name.removeprefix("torch-")
        if device == "cuda" and not torch.cuda.is_available():
            raise DeviceUnavailableError(
                f"backend {name}",
                got=f"no CUDA device (torch {torch.__version__})",
                allowed="a machine with an NVIDIA GPU and a CUDA build of torch",
                remedy="use torch-cpu here",
            )
        self.name, self._device = name, torch.device(device)
        self.version = f"torch {torch.__version__}"
        self.device = torch.cuda.get_device_name() if device == "cuda" else "cpu"

    def sinkhorn_projection(self, mix_logits: Array, iterations: int) -> Array:
        return _array(sinkhorn_projection(self._tensor(mix_logits), iterations))

    def sinkhorn_projection_vjp(self, mix_logits: Array, cotangent: Array, iterations: int) -> Array:
        logits = self._tensor(mix_logits).requires_grad_()
        sinkhorn_projection(logits, iterations).backward(self._tensor(cotangent))
        return _array(_gradient(logits))

    def adapter_forward(self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, iterations: int) -> Array:
        return _array(self._adapter([self._tensor(value) for value in (x, mix_logits, gate_logit, basis)], iterations))

    def adapter_vjp(
        self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, cotangent: Array, iterations: int
    ) -> Gradients:
        inputs = [self._tensor(value).requires_grad_() for value in (x, mix_logits, gate_logit, basis)]
        self._adapter(inputs, iterations).backward(self._tensor(cotangent))
        return Gradients(*(_array(_gradient(tensor)) for tensor in inputs))

    @staticmethod
    def _adapter(inputs: list[torch.Tensor], iterations: int) -> torch.Tensor:
        x, mix_logits, gate_logit, basis = inputs
        mixing = sinkhorn_projection(mix_logits, iterations)
        return residual_mixing(x, mixing, adapter_strength(gate_logit, basis), basis)

    def _tensor(self, array: Array) -> torch.Tensor:
        return torch.tensor(array, device=self._device)  # a copy: the caller's array stays as it is


def _array(tensor: torch.Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array


def _gradient(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.grad is None:
        raise RuntimeError("autograd reached the end without a gradient for an input that requires one")
    return tensor.grad


def make_backend(name: str) -> TorchBackend:
    """Factory for ``load_backend``."""
    return TorchBackend(name)

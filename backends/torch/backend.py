"""PyTorch behind the backend interface: gradients come out of autograd, as a user would get them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from backends.interface import DTYPES, Gradients, State, dtype_named
from backends.state_file import decode_state, encode_state
from backends.torch.autodiff import plain_adapter
from backends.torch.residual_mixing import adapter_strength, residual_mixing
from backends.torch.sinkhorn_projection import sinkhorn_projection
from reference import AdapterConfig
from reference.errors import DeviceUnavailableError

Array = NDArray[Any]


class TorchBackend:
    """``torch-cpu`` or ``torch-cuda``, in plain PyTorch. Clauses: BACK-1, ERR-3.

    Raises: DeviceUnavailableError if there is no CUDA device for ``torch-cuda``.
    """

    parameter_dtype: np.dtype[Any] = np.dtype(np.float32)
    x_dtypes = DTYPES

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
        self.device = f"cuda ({torch.cuda.get_device_name()})" if device == "cuda" else "cpu"

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

    def adapter_autodiff(
        self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, cotangent: Array, iterations: int
    ) -> Gradients:
        arrays = (x, mix_logits, gate_logit, basis)
        inputs = [self._tensor(value).double().requires_grad_() for value in arrays]
        plain_adapter(inputs[0], inputs[1], inputs[2], inputs[3], iterations).backward(self._tensor(cotangent).double())
        return Gradients(*(_array(_gradient(tensor)) for tensor in inputs))

    def load_state(self, data: bytes) -> State:
        content = decode_state(data)
        return State(content.mix_logits, content.gate_logits, content.bases, content.config.iterations)

    def save_state(self, mix_logits: Array, gate_logits: Array, bases: Array, iterations: int) -> bytes:
        _, n, r, d = bases.shape
        return encode_state(mix_logits, gate_logits, bases, AdapterConfig(d, n, r, iterations))

    @staticmethod
    def _adapter(inputs: list[torch.Tensor], iterations: int) -> torch.Tensor:
        x, mix_logits, gate_logit, basis = inputs
        mixing = sinkhorn_projection(mix_logits, iterations)
        return residual_mixing(x, mixing, adapter_strength(gate_logit, basis), basis)

    def _tensor(self, array: Array) -> torch.Tensor:
        array = np.ascontiguousarray(array).reshape(array.shape)  # torch reads no negative strides
        # A copy: the caller's array stays as it is.
        if array.dtype.name == "bfloat16":  # torch does not read the dtype of ml_dtypes; the bits are the same
            return torch.tensor(array.view(np.int16)).view(torch.bfloat16).to(self._device)
        return torch.tensor(array, device=self._device)


def _array(tensor: torch.Tensor) -> Array:
    values = tensor.detach().cpu()
    if values.dtype == torch.bfloat16:
        return np.asarray(values.view(torch.int16).numpy().view(dtype_named("bfloat16")))
    return np.asarray(values.numpy())


def _gradient(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.grad is None:
        raise RuntimeError("autograd reached the end without a gradient for an input that requires one")
    return tensor.grad


def make_backend(name: str) -> TorchBackend:
    """Factory for ``load_backend``."""
    return TorchBackend(name)

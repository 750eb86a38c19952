"""PyTorch behind the backend interface: gradients come out of autograd, as a user would get them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
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
from reference.errors import DeviceUnavailableError, MissingPackageError

Array = NDArray[Any]


class TorchBackend:
    """``torch-cpu`` or ``torch-cuda``, in plain PyTorch, and ``torch-triton``, the Triton kernels.

    The last runs on the GPU if there is one, and in Triton's interpreter otherwise: slow, and made for tests.

    Raises: DeviceUnavailableError if there is no CUDA device for ``torch-cuda``; MissingPackageError if there is no
    Triton for ``torch-triton``. Clauses: BACK-1, BACK-2, ERR-3.
    """

    parameter_dtype: np.dtype[Any] = np.dtype(np.float32)
    x_dtypes = DTYPES
    _project: Callable[..., torch.Tensor]
    _mix: Callable[..., torch.Tensor]

    def __init__(self, name: str) -> None:
        self.name, self.version = name, f"torch {torch.__version__}"
        device = name.removeprefix("torch-")
        if device == "triton":
            kernels, triton_version = _load_kernels(name)
            self._project, self._mix = kernels.sinkhorn_projection, kernels.residual_mixing
            self.version += f", triton {triton_version}"
            device = "cpu" if kernels.INTERPRETED else "cuda"
        else:
            self._project, self._mix = sinkhorn_projection, residual_mixing
        if device == "cuda" and not torch.cuda.is_available():
            raise DeviceUnavailableError(
                f"backend {name}",
                got=f"no CUDA device (torch {torch.__version__})",
                allowed="a machine with an NVIDIA GPU and a CUDA build of torch",
                remedy="use torch-cpu here",
            )
        self._device = torch.device(device)
        self.device = f"cuda ({torch.cuda.get_device_name()})" if device == "cuda" else "cpu"
        if name == "torch-triton" and device == "cpu":
            self.device = "cpu (Triton interpreter)"

    def sinkhorn_projection(self, mix_logits: Array, iterations: int) -> Array:
        return _array(self._project(self._tensor(mix_logits), iterations))

    def sinkhorn_projection_vjp(self, mix_logits: Array, cotangent: Array, iterations: int) -> Array:
        logits = self._tensor(mix_logits).requires_grad_()
        self._project(logits, iterations).backward(self._tensor(cotangent))
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

    def _adapter(self, inputs: list[torch.Tensor], iterations: int) -> torch.Tensor:
        x, mix_logits, gate_logit, basis = inputs
        mixing = self._project(mix_logits, iterations)
        return self._mix(x, mixing, adapter_strength(gate_logit, basis), basis)

    def _tensor(self, array: Array) -> torch.Tensor:
        array = np.ascontiguousarray(array).reshape(array.shape)  # torch reads no negative strides
        # A copy: the caller's array stays as it is.
        if array.dtype.name == "bfloat16":  # torch does not read the dtype of ml_dtypes; the bits are the same
            return torch.tensor(array.view(np.int16)).view(torch.bfloat16).to(self._device)
        return torch.tensor(array, device=self._device)


def _load_kernels(name: str) -> tuple[ModuleType, str]:
    """The Triton kernels and Triton's version. Without a GPU they are made for Triton's interpreter."""
    try:
        import triton  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"backend {name}",
            got=f"no package named {error.name}",
            allowed="an installation with the extra 'triton', on Linux",
            remedy="pip install 'crma[triton]'",
        ) from error
    with triton.knobs.runtime.scope():  # the environment and other kernels of this process stay as they are
        if not torch.cuda.is_available():
            triton.knobs.runtime.interpret = True
        kernels = importlib.import_module("backends.torch.kernels")
        interpreted = kernels.INTERPRETED  # makes the kernels, if nothing has yet
    if not (interpreted or torch.cuda.is_available()):
        raise DeviceUnavailableError(
            f"backend {name}",
            got=f"no CUDA device (torch {torch.__version__}), and kernels that were made for one",
            allowed="a machine with an NVIDIA GPU, or Triton's interpreter",
            remedy="load this backend before backends.torch.kernels is used, or set TRITON_INTERPRET=1",
        )
    return kernels, str(triton.__version__)


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

"""PyTorch behind the backend interface: gradients come out of autograd, as a user would get them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from backends.interface import DTYPES, Gradients, Limited, Moment, State, dtype_named
from backends.state_file import decode_state, encode_state
from backends.torch import certificates
from backends.torch.autodiff import plain_adapter
from backends.torch.backbone import require_finite_state
from backends.torch.certificates import AdapterState
from backends.torch.data_displacement import MomentGatherer, StreamMoments, limit_data_displacement
from backends.torch.functions import Kernels, functions
from backends.torch.residual_mixing import adapter_strength
from reference import AdapterConfig
from reference.errors import DeviceUnavailableError

Array = NDArray[Any]


class TorchBackend:
    """PyTorch: on the CPU as plain tensor operations, on a GPU as Triton kernels, unless asked for the other.

    Args:
        name: as reports show it. device: "cpu" or "cuda".
        kernels: "auto", "torch" or "triton", as in CRMAAdapter.

    Raises: DeviceUnavailableError if there is no such device; MissingPackageError if there is no Triton where it is
    needed. Clauses: BACK-1, BACK-2, ERR-3.
    """

    parameter_dtype: np.dtype[Any] = np.dtype(np.float32)
    x_dtypes = DTYPES
    thread_safe = True

    def __init__(self, name: str, device: str, kernels: Kernels = "auto") -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise DeviceUnavailableError(
                f"backend {name}",
                got=f"no CUDA device (torch {torch.__version__})",
                allowed="a machine with an NVIDIA GPU and a CUDA build of torch",
                remedy="use torch-cpu here",
            )
        self.name, self.version = name, f"torch {torch.__version__}"
        self._functions = functions(kernels, device)
        self._device = torch.device(device)
        self.device = f"cuda ({torch.cuda.get_device_name()})" if device == "cuda" else "cpu"
        if self._functions != functions("torch", device):
            import triton  # type: ignore[import-untyped]

            self.version += f", triton {triton.__version__}"

    def sinkhorn_projection(self, mix_logits: Array, iterations: int) -> Array:
        return _array(self._functions.sinkhorn_projection(self._tensor(mix_logits), iterations))

    def sinkhorn_projection_vjp(self, mix_logits: Array, cotangent: Array, iterations: int) -> Array:
        logits = self._tensor(mix_logits).requires_grad_()
        self._functions.sinkhorn_projection(logits, iterations).backward(self._tensor(cotangent))
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

    def limit_displacement(self, *arguments: Any) -> Limited:
        *arrays, delta, iterations = arguments
        anchor, now = self._states(arrays)
        return _limited(anchor, now, certificates.limit_displacement(anchor, now, delta, iterations))

    def stream_moment(self, x: Array, basis: Array) -> Moment:
        tokens = self._tensor(x).reshape(1, -1, np.shape(x)[-1])
        gatherer = MomentGatherer(self._tensor(basis)[None], torch.ones(tokens.shape[:2]))
        gatherer.add(0, None, (tokens,))
        totals, count = gatherer.moments()
        return Moment(_array(totals[0]), count)

    def limit_data_displacement(self, *arguments: Any) -> Limited:
        *arrays, total, tokens, epsilon, iterations = arguments
        anchor, now = self._states(arrays)
        moments = StreamMoments(self._tensor(total)[None], tokens)
        fraction = limit_data_displacement(anchor, now, moments, epsilon, iterations)
        return _limited(anchor, now, fraction)._replace(basis=_array(now.bases[0]))

    def _states(self, arrays: list[Array]) -> tuple[AdapterState, AdapterState]:
        """The anchor and the state, each as a stack of one layer."""
        layers = [self._tensor(array)[None] for array in arrays]
        anchor, now = AdapterState._make(layers[:3]), AdapterState._make(layers[3:])
        require_finite_state(now)
        return anchor, now

    def _adapter(self, inputs: list[torch.Tensor], iterations: int) -> torch.Tensor:
        x, mix_logits, gate_logit, basis = inputs
        mixing = self._functions.sinkhorn_projection(mix_logits, iterations)
        return self._functions.residual_mixing(x, mixing, adapter_strength(gate_logit, basis), basis)

    def _tensor(self, array: Array) -> torch.Tensor:
        array = np.array(array, order="C")  # a copy: the caller's stays as it is, and torch reads no negative strides
        if array.dtype.name == "bfloat16":  # torch does not read the dtype of ml_dtypes; the bits are the same
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(self._device)
        return torch.from_numpy(array).to(self._device)


def _limited(anchor: AdapterState, now: AdapterState, fraction: torch.Tensor) -> Limited:
    limited = certificates.interpolate(anchor, now, fraction) if bool((fraction < 1).any()) else now
    return Limited._make([*(_array(part[0]) for part in limited), float(fraction)])


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
    """Factory for ``load_backend``: torch-cpu, torch-cuda or torch-triton."""
    return triton_backend() if name == "torch-triton" else TorchBackend(name, name.removeprefix("torch-"))


def make_plain_cuda() -> TorchBackend:
    """Plain PyTorch on a GPU: ``--backend=backends.torch.backend:make_plain_cuda``."""
    return TorchBackend("torch-cuda, plain", "cuda", "torch")


def triton_backend() -> TorchBackend:
    """The Triton kernels on the GPU if there is one, and otherwise in Triton's interpreter, for tests."""
    if torch.cuda.is_available():
        return TorchBackend("torch-triton", "cuda", "triton")
    with _interpreted():
        backend = TorchBackend("torch-triton", "cpu", "triton")
        from backends.torch.kernels import INTERPRETED
    if not INTERPRETED:
        raise DeviceUnavailableError(
            "backend torch-triton",
            got=f"no CUDA device (torch {torch.__version__}), and kernels that were made for one",
            allowed="a machine with an NVIDIA GPU, or Triton's interpreter",
            remedy="load this backend before backends.torch.kernels is used, or set TRITON_INTERPRET=1",
        )
    backend.device = "cpu (Triton interpreter)"
    backend.thread_safe = False  # BACK-11: the interpreter exchanges functions of Triton's modules for its own
    return backend


@contextmanager
def _interpreted() -> Iterator[None]:
    """Kernels imported inside are made for the interpreter; the environment and other kernels stay as they are."""
    try:
        import triton
    except ModuleNotFoundError:
        yield  # and loading the kernels says what is missing
        return
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = True
        yield

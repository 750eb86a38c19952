"""JAX behind the backend interface: gradients come out of ``jax.vjp``, as a user would get them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from backends.interface import DTYPES, Gradients, State
from backends.jax.adapter import adapter_forward
from backends.jax.autodiff import plain_adapter
from backends.jax.kernels import Kernels
from backends.jax.sinkhorn_projection import sinkhorn_projection
from backends.state_file import decode_state, encode_state
from reference import AdapterConfig
from reference.errors import DeviceUnavailableError
from reference.sinkhorn_projection import checked_iterations

Array = NDArray[Any]
KEPT_SHAPES = 150  # of arguments; what JAX compiles for each stays in memory, about 15 MB in all


class JaxBackend:
    """``jax-cpu`` or ``jax-cuda``. The functions are called as they are: what they compile for a shape they keep.

    x64 is on within a call where x is float64, or automatic differentiation is to be exact, and nowhere else.

    Raises: DeviceUnavailableError if JAX has no such device. Clauses: BACK-1..BACK-4, BACK-6, ERR-3.
    """

    parameter_dtype: np.dtype[Any] = np.dtype(np.float32)
    x_dtypes = DTYPES

    def __init__(self, name: str, kind: str | None = None, kernels: Kernels = "auto") -> None:
        kind = kind or name.removeprefix("jax-")
        self.name, self.version = name, f"jax {jax.__version__}, jaxlib {metadata.version('jaxlib')}"
        self._device, self._kernels = _device(name, kind), kernels
        self._shapes: set[tuple[Any, ...]] = set()
        self.device = f"{kind} ({self._device.device_kind})" if kind != "cpu" else kind

    def sinkhorn_projection(self, mix_logits: Array, iterations: int) -> Array:
        with self._placed(mix_logits):
            return np.array(sinkhorn_projection(self._array(mix_logits), iterations, self._kernels))

    def sinkhorn_projection_vjp(self, mix_logits: Array, cotangent: Array, iterations: int) -> Array:
        with self._placed(mix_logits):
            project = functools.partial(sinkhorn_projection, iterations=iterations, kernels=self._kernels)
            return np.array(_pull_back(project, [self._array(mix_logits)], self._array(cotangent))[0])

    def adapter_forward(self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, iterations: int) -> Array:
        with self._placed(x, basis):
            inputs = (self._array(value) for value in (x, mix_logits, gate_logit, basis))
            return np.array(self._forward(iterations)(*inputs))

    def adapter_vjp(
        self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, cotangent: Array, iterations: int
    ) -> Gradients:
        with self._placed(x, basis):
            inputs = [self._array(value) for value in (x, mix_logits, gate_logit, basis)]
            return Gradients(*map(np.array, _pull_back(self._forward(iterations), inputs, self._array(cotangent))))

    def adapter_autodiff(
        self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, cotangent: Array, iterations: int
    ) -> Gradients:
        wide = [value.astype(np.float64) for value in (x, mix_logits, gate_logit, basis, cotangent)]
        with self._placed(*wide):
            *inputs, upstream = map(self._array, wide)
            gradients = _plain_pull_back(inputs, upstream, checked_iterations(iterations))
            dtypes = (x.dtype, *[self.parameter_dtype] * 3)
            return Gradients(*(np.array(value).astype(dtype) for value, dtype in zip(gradients, dtypes, strict=True)))

    def load_state(self, data: bytes) -> State:
        content = decode_state(data)
        return State(content.mix_logits, content.gate_logits, content.bases, content.config.iterations)

    def save_state(self, mix_logits: Array, gate_logits: Array, bases: Array, iterations: int) -> bytes:
        _, n, r, d = bases.shape
        return encode_state(mix_logits, gate_logits, bases, AdapterConfig(d, n, r, iterations))

    def _forward(self, iterations: int) -> Callable[..., jax.Array]:
        return functools.partial(adapter_forward, iterations=iterations, kernels=self._kernels)

    def _placed(self, *arrays: Array) -> AbstractContextManager[Any]:
        """x64 where the first array is float64. Thousands of shapes, as in conformance/, would fill the memory."""
        self._shapes.add(tuple((array.shape, array.dtype) for array in arrays))
        if len(self._shapes) > KEPT_SHAPES:
            self._shapes.clear()
            jax.clear_caches()  # compiled programs, which are compiled again when they are needed
        return jax.enable_x64(True) if arrays[0].dtype == np.float64 else nullcontext()

    def _array(self, array: Array) -> jax.Array:
        # A copy of its own: on a CPU JAX would take the caller's memory, which the caller may change.
        return jax.device_put(np.array(array, order="C"), self._device)


def _pull_back(function: Callable[..., jax.Array], inputs: list[jax.Array], cotangent: jax.Array) -> tuple[Any, ...]:
    return tuple(jax.vjp(function, *inputs)[1](cotangent))


@functools.partial(jax.jit, static_argnums=2)
def _plain_pull_back(inputs: list[jax.Array], cotangent: jax.Array, iterations: int) -> tuple[Any, ...]:
    return _pull_back(functools.partial(plain_adapter, iterations=iterations), inputs, cotangent)


def _device(name: str, kind: str) -> jax.Device:
    try:
        return jax.local_devices(backend=kind)[0]
    except RuntimeError as error:  # JAX's own message may be several lines
        raise DeviceUnavailableError(
            f"backend {name}",
            got=f"no such device (jax {jax.__version__} has {', '.join(sorted({d.platform for d in jax.devices()}))})",
            allowed="a machine with an NVIDIA GPU and jax[cuda13]" if kind == "cuda" else "a JAX that computes on it",
            remedy="use jax-cpu here" if kind != "cpu" else "unset JAX_PLATFORMS",
        ) from error


def make_backend(name: str) -> JaxBackend:
    """Factory for ``load_backend``."""
    return JaxBackend(name)

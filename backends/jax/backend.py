"""JAX behind the backend interface: gradients come out of ``jax.vjp``, as a user would get them."""

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from backends.interface import DTYPES, Gradients, Limited, Moment, State
from backends.jax.adapter import CRMAAdapter, adapter_forward
from backends.jax.autodiff import plain_adapter
from backends.jax.certificates import limit_displacement
from backends.jax.data_displacement import StreamMoments, limit_data_displacement, moments_of, stream_total
from backends.jax.kernels import Kernels
from backends.jax.sinkhorn_projection import sinkhorn_projection
from backends.state_file import decode_state, encode_state
from reference import AdapterConfig
from reference.errors import DeviceUnavailableError
from reference.sinkhorn_projection import checked_iterations

Array = NDArray[Any]
#: The functions are called with hundreds of sizes, each a few times: a program that is compiled fast and is a little
#: slower is the better one. A training program leaves both as XLA has them.
COMPILER_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,  # threads that wait for each other where several processes compile
}
#: programs that are kept: a run of the whole suite compiles some 1,000, and one takes about 5 MB on a CPU
KEPT_SHAPES = 1200


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
        self._programs: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._shapes: set[tuple[Any, ...]] = set()
        self.device = f"{kind} ({self._device.device_kind})" if kind != "cpu" else kind

    def sinkhorn_projection(self, mix_logits: Array, iterations: int) -> Array:
        with self._placed(mix_logits):
            return np.array(self._run(sinkhorn_projection, iterations, mix_logits))

    def sinkhorn_projection_vjp(self, mix_logits: Array, cotangent: Array, iterations: int) -> Array:
        with self._placed(mix_logits):
            return np.array(self._run(sinkhorn_projection, iterations, cotangent, mix_logits, gradient=True)[0])

    def adapter_forward(self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, iterations: int) -> Array:
        with self._placed(x, basis):
            return np.array(self._run(adapter_forward, iterations, x, mix_logits, gate_logit, basis))

    def adapter_vjp(
        self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, cotangent: Array, iterations: int
    ) -> Gradients:
        with self._placed(x, basis):
            inputs = (cotangent, x, mix_logits, gate_logit, basis)
            return Gradients(*map(np.array, self._run(adapter_forward, iterations, *inputs, gradient=True)))

    def adapter_autodiff(
        self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, cotangent: Array, iterations: int
    ) -> Gradients:
        wide = [value.astype(np.float64) for value in (x, mix_logits, gate_logit, basis, cotangent)]
        with self._placed(*wide):
            *inputs, upstream = wide
            gradients = self._run(plain_adapter, iterations, upstream, *inputs, gradient=True)
            dtypes = (x.dtype, *[self.parameter_dtype] * 3)
            return Gradients(*(np.array(value).astype(dtype) for value, dtype in zip(gradients, dtypes, strict=True)))

    def load_state(self, data: bytes) -> State:
        content = decode_state(data)
        return State(content.mix_logits, content.gate_logits, content.bases, content.config.iterations)

    def save_state(self, mix_logits: Array, gate_logits: Array, bases: Array, iterations: int) -> bytes:
        _, n, r, d = bases.shape
        return encode_state(mix_logits, gate_logits, bases, AdapterConfig(d, n, r, iterations))

    def limit_displacement(self, *arguments: Any) -> Limited:
        *arrays, delta, iterations = arguments
        anchor, stack = self._stacks(arrays, iterations)
        return _limited(*limit_displacement(anchor, stack, delta))

    def stream_moment(self, x: Array, basis: Array) -> Moment:
        tokens = self._array(x)
        total = stream_total(tokens, self._array(basis), jnp.ones(tokens.shape[:-1]))
        totals, count = moments_of(total[None], math.prod(tokens.shape[:-1]))
        return Moment(totals[0], count)

    def limit_data_displacement(self, *arguments: Any) -> Limited:
        *arrays, total, tokens, epsilon, iterations = arguments
        moments = StreamMoments(np.array(total)[None], tokens)
        anchor, stack = self._stacks(arrays, iterations)
        return _limited(*limit_data_displacement(anchor, stack, moments, epsilon))

    def _stacks(self, arrays: list[Array], iterations: int) -> tuple[CRMAAdapter, CRMAAdapter]:
        """The anchor and the state, each as a stack of one layer."""
        logits, gate, basis, *others = (self._array(array)[None] for array in arrays)
        return CRMAAdapter(logits, gate, basis, iterations), CRMAAdapter(others[0], others[1], others[2], iterations)

    def _run(self, function: Callable[..., jax.Array], iterations: int, *arrays: Array, gradient: bool = False) -> Any:
        """Compiled once for each function, K and set of shapes, as a training step that calls it would be.

        What was compiled is kept, ``KEPT_SHAPES`` programs at most. With ``gradient`` the first array is dL/dy.
        """
        key = (function, checked_iterations(iterations), gradient)
        self._shapes.add((key, *((array.shape, array.dtype.name) for array in arrays)))
        if len(self._shapes) > KEPT_SHAPES:
            self._shapes.clear()
            self._programs.clear()
            jax.clear_caches()
        program = self._programs.get(key)
        if program is None:
            kernels = {} if function is plain_adapter else {"kernels": self._kernels}
            forward = functools.partial(function, iterations=key[1], **kernels)
            options = COMPILER_OPTIONS if self._device.platform == "cpu" else None
            called = functools.partial(_pull_back, forward) if gradient else forward
            program = self._programs[key] = jax.jit(called, compiler_options=options)
        return program(*map(self._array, arrays))

    def _placed(self, *arrays: Array) -> AbstractContextManager[Any]:
        """x64 where the first array is float64."""
        return jax.enable_x64(True) if arrays[0].dtype == np.float64 else nullcontext()

    def _array(self, array: Array) -> jax.Array:
        # A copy of its own: on a CPU JAX would take the caller's memory, which the caller may change.
        return jax.device_put(np.array(array, order="C"), self._device)


def _limited(stack: CRMAAdapter, fraction: Any) -> Limited:
    parts = (np.array(part[0]) for part in (stack.mix_logits, stack.gate_logit, stack.basis))
    return Limited._make([*parts, float(fraction[0])])


def _pull_back(function: Callable[..., jax.Array], cotangent: jax.Array, *inputs: jax.Array) -> tuple[Any, ...]:
    return tuple(jax.vjp(function, *inputs)[1](cotangent))


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

"""The backend interface: what a port provides.

A port of another framework converts at this border, and runs its own code, its own automatic differentiation included,
inside. Here arrays are NumPy's; ``backends.port`` serves ports that would rather have plain lists, and
``backends.executable`` those that are programs of their own.

Clauses: BACK-1, BACK-3, BACK-4, BACK-6 to BACK-12.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Gradients(NamedTuple):
    """Cotangents of the inputs of ``adapter_forward``, each shaped as its input."""

    x: Array
    mix_logits: Array
    gate_logit: Array
    basis: Array


class State(NamedTuple):
    """What a state file holds: mix_logits (L, n, n), gate_logits (L,), bases (L, n, r, d), and K."""

    mix_logits: Array
    gate_logits: Array
    bases: Array
    iterations: int


class Limited(NamedTuple):
    """A state that was pulled back along the segment to its anchor, shaped as it was, and t, how much of the way was
    kept."""

    mix_logits: Array
    gate_logit: Array
    basis: Array
    fraction: float


class Moment(NamedTuple):
    """Sum over tokens of ``z z^T / ||x||^2``, (n r, n r) in float64, and the number of tokens."""

    total: Array
    tokens: int


@runtime_checkable
class Backend(Protocol):
    """One implementation of CRMA: four attributes and five functions.

    Attributes:
        name: as given to ``load_backend``, or the port's own.
        version: of the implementation and of its framework.
        device: where it computes: "cpu", "cuda", "cuda:0 (its name)", ...
        parameter_dtype: dtype of logits, gate and basis: float32; float64 for the reference.

    A port may also have
        x_dtypes: names of the dtypes it takes for x; without it, that of ``parameter_dtype`` alone.
        arrays: "numpy" (the default) or "lists", what it wants to be given.
        thread_safe: False if several threads may not call it at once (BACK-11); True is the default.
        save_state(mix_logits, gate_logits, bases, iterations) -> bytes of a state file.
        adapter_autodiff(x, mix_logits, gate_logit, basis, cotangent, iterations) -> as ``adapter_vjp``, found by the
        framework's automatic differentiation of the plain forward formulas, without any closed form.
        limit_displacement(*anchor, *parameters, delta, iterations) -> ``Limited``. anchor, parameters: each mix_logits,
        gate_logit and basis.
        stream_moment(x, basis) -> ``Moment``.
        limit_data_displacement(*anchor, *parameters, total, tokens, epsilon, iterations) -> ``Limited``.
    """

    name: str
    version: str
    device: str
    parameter_dtype: np.dtype[Any]

    def sinkhorn_projection(self, mix_logits: Array, iterations: int) -> Array:
        """(..., n, n) logits -> (..., n, n) doubly stochastic matrices."""
        ...

    def sinkhorn_projection_vjp(self, mix_logits: Array, cotangent: Array, iterations: int) -> Array:
        """dL/dM -> dL/dS, both (..., n, n)."""
        ...

    def adapter_forward(self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, iterations: int) -> Array:
        """x (..., d), S (n, n), gamma (), A (n, r, d) -> y (..., d)."""
        ...

    def adapter_vjp(
        self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, cotangent: Array, iterations: int
    ) -> Gradients:
        """dL/dy (..., d) -> the cotangents of the four inputs."""
        ...

    def load_state(self, data: bytes) -> State:
        """The bytes of a state file -> what it holds; anything that is no such file is refused."""
        ...


REQUIRED = ("sinkhorn_projection", "sinkhorn_projection_vjp", "adapter_forward", "adapter_vjp", "load_state")
REQUIRED_ATTRIBUTES = ("name", "version", "device", "parameter_dtype")
OPTIONAL = ("save_state", "adapter_autodiff", "limit_displacement", "stream_moment", "limit_data_displacement")
STATES = ("anchor_mix_logits", "anchor_gate_logit", "anchor_basis", "mix_logits", "gate_logit", "basis")
#: names of the arguments of what limits
LIMITS = {
    "limit_displacement": (*STATES, "delta", "iterations"),
    "limit_data_displacement": (*STATES, "total", "tokens", "epsilon", "iterations"),
}
DTYPES = ("float64", "float32", "float16", "bfloat16")


def dtype_named(name: str) -> np.dtype[Any]:
    """The NumPy dtype of one of ``DTYPES``; bfloat16 comes from the package ml_dtypes."""
    if name == "bfloat16":
        from ml_dtypes import bfloat16

        return np.dtype(bfloat16)
    return np.dtype(name)


def rounded(array: Array, dtype: np.dtype[Any]) -> Array:
    """float64 to ``dtype``, to nearest and in one step. Clauses: MIX-10, BACK-12.

    ml_dtypes rounds float64 to float32 on its way to bfloat16. What float32 could not hold is marked there in the last
    bit, which is never that of a number halfway between two of bfloat16, so the second step decides as a single one.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # MIX-10: too large becomes an infinity
        if array.dtype != np.float64 or dtype.name != "bfloat16":
            return array.astype(dtype)
        single = array.astype(np.float32)
        inexact = np.isfinite(single) & (single != array)
        bits = single.view(np.uint32)
        too_far = inexact & (np.abs(single) > np.abs(array))
        odd = np.where(inexact, (bits - too_far.astype(np.uint32)) | np.uint32(1), bits)
        return np.asarray(odd.view(np.float32).astype(dtype)).reshape(array.shape)


def x_dtypes(backend: Backend) -> tuple[str, ...]:
    """The names of the dtypes that a backend takes for x. Clause: BACK-6."""
    return tuple(getattr(backend, "x_dtypes", ())) or (np.dtype(backend.parameter_dtype).name,)

"""The backend interface: what a port provides, NumPy arrays in and NumPy arrays out.

Clauses: BACK-1, BACK-2. Source: ours. A port of another framework converts at this border, and runs its own code,
its own automatic differentiation included, inside.
"""

from __future__ import annotations

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


@runtime_checkable
class Backend(Protocol):
    """One implementation of CRMA.

    Attributes:
        name: as given to ``--backend``.
        version: of the implementation and of its framework.
        device: where it computes, in words.
        parameter_dtype: dtype of logits, gate and basis: float32; float64 for the reference.
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


REQUIRED = ("sinkhorn_projection", "sinkhorn_projection_vjp", "adapter_forward", "adapter_vjp")
REQUIRED_ATTRIBUTES = ("name", "version", "device", "parameter_dtype")

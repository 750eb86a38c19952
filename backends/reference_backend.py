"""The reference behind the backend interface, so that the conformance suite can be run against its own truth."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import reference
from backends.interface import Gradients

Array = NDArray[Any]


class ReferenceBackend:
    """NumPy, float64. Clauses: BACK-1."""

    name = "reference"
    version = f"spec {reference.SPEC_VERSION}, NumPy {np.__version__}"
    device = "cpu"
    parameter_dtype: np.dtype[Any] = np.dtype(np.float64)

    def sinkhorn_projection(self, mix_logits: Array, iterations: int) -> Array:
        return reference.sinkhorn_projection(mix_logits, iterations)

    def sinkhorn_projection_vjp(self, mix_logits: Array, cotangent: Array, iterations: int) -> Array:
        return reference.sinkhorn_projection_vjp(mix_logits, cotangent, iterations)

    def adapter_forward(self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, iterations: int) -> Array:
        parameters = reference.AdapterParameters(mix_logits, gate_logit, basis)
        return reference.adapter_forward(x, parameters, iterations).astype(x.dtype)

    def adapter_vjp(
        self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, cotangent: Array, iterations: int
    ) -> Gradients:
        parameters = reference.AdapterParameters(mix_logits, gate_logit, basis)
        return Gradients(*reference.adapter_vjp(x, parameters, cotangent, iterations))


def make_backend(name: str) -> ReferenceBackend:
    """Factory for ``load_backend``."""
    return ReferenceBackend()

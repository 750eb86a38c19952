"""The reference behind the backend interface, so that the conformance suite can be run against its own truth."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import reference
from backends.interface import DTYPES, Gradients, Limited, Moment, State, rounded

Array = NDArray[Any]


class ReferenceBackend:
    """NumPy, float64. Clauses: BACK-1."""

    name = "reference"
    version = f"spec {reference.SPEC_VERSION}, NumPy {np.__version__}"
    device = "cpu"
    parameter_dtype: np.dtype[Any] = np.dtype(np.float64)
    x_dtypes = DTYPES

    def sinkhorn_projection(self, mix_logits: Array, iterations: int) -> Array:
        return reference.sinkhorn_projection(mix_logits, iterations)

    def sinkhorn_projection_vjp(self, mix_logits: Array, cotangent: Array, iterations: int) -> Array:
        return reference.sinkhorn_projection_vjp(mix_logits, cotangent, iterations)

    def adapter_forward(self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, iterations: int) -> Array:
        parameters = reference.AdapterParameters(mix_logits, gate_logit, basis)
        return rounded(reference.adapter_forward(x, parameters, iterations), x.dtype)

    def adapter_vjp(
        self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, cotangent: Array, iterations: int
    ) -> Gradients:
        parameters = reference.AdapterParameters(mix_logits, gate_logit, basis)
        gradients = reference.adapter_vjp(x, parameters, cotangent, iterations)
        return Gradients(rounded(gradients.x, x.dtype), *gradients[1:])

    def load_state(self, data: bytes) -> State:
        from backends.state_file import decode_state  # needs safetensors, which the mathematics does not

        content = decode_state(data)
        return State(content.mix_logits, content.gate_logits, content.bases, content.config.iterations)

    def save_state(self, mix_logits: Array, gate_logits: Array, bases: Array, iterations: int) -> bytes:
        from backends.state_file import encode_state

        _, n, r, d = bases.shape
        return encode_state(mix_logits, gate_logits, bases, reference.AdapterConfig(d, n, r, iterations))

    def limit_displacement(self, *arguments: Any) -> Limited:
        *arrays, delta, iterations = arguments
        limited, fraction = reference.limit_displacement(*_states(arrays), delta, iterations)
        return Limited(*limited, fraction)

    def stream_moment(self, x: Array, basis: Array) -> Moment:
        return Moment(*reference.stream_moment(x, basis))

    def limit_data_displacement(self, *arguments: Any) -> Limited:
        *arrays, total, tokens, epsilon, iterations = arguments
        moment = reference.StreamMoment(total, tokens)
        limited, fraction = reference.limit_data_displacement(*_states(arrays), moment, epsilon, iterations)
        return Limited(*limited, fraction)


def _states(arrays: Sequence[Any]) -> tuple[reference.AdapterParameters, reference.AdapterParameters]:
    return reference.AdapterParameters(*arrays[:3]), reference.AdapterParameters(*arrays[3:])


def make_backend(name: str) -> ReferenceBackend:
    """Factory for ``load_backend``."""
    return ReferenceBackend()

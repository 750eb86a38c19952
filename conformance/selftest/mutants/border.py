"""Faults at the border of a port: dtypes, devices, values that are not finite, shapes."""

from typing import Any

import numpy as np

from backends.interface import Gradients
from conformance.selftest.mutants.base import ADAPTER, ORTHOGONAL, PROJECTION, STATE_FILE, Mutant
from conformance.selftest.port import Array, NumpyPort


class HalfPrecisionStreams(NumpyPort):
    """The streams are rounded to the dtype of x, before they are mixed and after."""

    def adapter_forward(self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, iterations: int) -> Array:
        def rounded(array: Array) -> Array:
            return array.astype(x.dtype).astype(self.parameter_dtype)

        tokens, gate, rows = self.checked_inputs(x, mix_logits, gate_logit, basis)
        streams = rounded(self.read(tokens, rows))
        moved = rounded(self.sinkhorn_projection(mix_logits, iterations) @ streams - streams)
        return np.asarray((tokens + self.strength(gate, rows) * self.write(moved, rows)).astype(x.dtype))


class HalfPrecisionParameters(NumpyPort):
    """The basis is rounded to the dtype of x, and the rest done in float32."""

    def checked_inputs(self, x: Array, logits: Array, gate_logit: Array, basis: Array) -> tuple[Array, Array, Array]:
        tokens, gate, rows = super().checked_inputs(x, logits, gate_logit, basis)
        return tokens, gate, rows.astype(x.dtype).astype(self.parameter_dtype)


class HalfPrecisionGradients(NumpyPort):
    """The gradients of the parameters are rounded to the dtype of x on their way."""

    def adapter_vjp(self, *inputs: Any) -> Gradients:
        gradients = super().adapter_vjp(*inputs)
        kept = [array.astype(inputs[0].dtype).astype(array.dtype) for array in gradients[1:]]
        return Gradients(gradients.x, *kept)


class TwoRoundingsOfY(NumpyPort):
    """What is added to x is rounded to the dtype of x, and their sum again."""

    def adapter_forward(self, x: Array, *parameters: Any) -> Array:
        y = super().adapter_forward(np.asarray(x, self.parameter_dtype), *parameters)
        return np.asarray(x + (y - x.astype(self.parameter_dtype)).astype(x.dtype))


class Float32Out(NumpyPort):
    """y is float32 whatever x is."""

    def adapter_forward(self, x: Array, *parameters: Any) -> Array:
        return super().adapter_forward(np.asarray(x, self.parameter_dtype), *parameters)


class Float32GradientOut(NumpyPort):
    """So is the gradient of x."""

    def adapter_vjp(self, x: Array, *others: Any) -> Gradients:
        return super().adapter_vjp(np.asarray(x, self.parameter_dtype), *others)


class Float64Out(NumpyPort):
    """The projection is float64 though the parameters are float32."""

    def sinkhorn_projection(self, mix_logits: Array, iterations: int) -> Array:
        return super().sinkhorn_projection(mix_logits, iterations).astype(np.float64)


class SilentFallback(NumpyPort):
    """Named for a GPU, and computes on the CPU."""

    name = "mutant-cuda"


class NanInXBecomesZero(NumpyPort):
    def adapter_forward(self, x: Array, *parameters: Any) -> Array:
        return super().adapter_forward(np.nan_to_num(x), *parameters)


class OneTokenSpoilsAll(NumpyPort):
    """One product of a whole batch, padded with zero weights: 0 times NaN is NaN."""

    def read(self, tokens: Array, basis: Array) -> Array:
        streams = super().read(tokens, basis)
        return streams + 0 * streams.sum()


class NanInTheGateBecomesClosed(NumpyPort):
    """``where(gamma >= 0, ..., ...)`` and a NaN gives a gate of 0: y = x."""

    def sigmoid(self, value: Array) -> Any:
        return np.nan_to_num(super().sigmoid(value), nan=0.0)


class NanInTheBasisBecomesZero(NumpyPort):
    def checked_inputs(self, x: Array, logits: Array, gate_logit: Array, basis: Array) -> tuple[Array, Array, Array]:
        return super().checked_inputs(x, logits, gate_logit, np.nan_to_num(basis, posinf=0, neginf=0))


class FirstGateForAll(NumpyPort):
    """Of several gates the first is taken, without a word."""

    def checked_inputs(self, x: Array, logits: Array, gate_logit: Array, basis: Array) -> tuple[Array, Array, Array]:
        return super().checked_inputs(x, logits, np.ravel(gate_logit)[0], basis)


class IterationsAtLeastOne(NumpyPort):
    """K = 0 is taken for 1."""

    def sinkhorn_projection(self, mix_logits: Array, iterations: int) -> Array:
        return super().sinkhorn_projection(mix_logits, max(1, iterations))

    def sinkhorn_projection_vjp(self, mix_logits: Array, cotangent: Array, iterations: int) -> Array:
        return super().sinkhorn_projection_vjp(mix_logits, cotangent, max(1, iterations))


class CutsToASquare(NumpyPort):
    """Logits that are not square are cut until they are."""

    def checked_logits(self, mix_logits: Array) -> Array:
        n = min(mix_logits.shape[-2:])
        return super().checked_logits(mix_logits[..., :n, :n])


_HALF = ("test_half_precision_x_with_full_precision_inside",)
_TOKEN = ("test_a_token_that_is_not_finite_passes_through_and_touches_no_other",)
_DTYPE = ("test_result_has_the_dtype_and_shape_of_x",)
_ALL = (PROJECTION, STATE_FILE)
_BOTH = (PROJECTION, ADAPTER, STATE_FILE)
MUTANTS = tuple(
    Mutant(name, factory, caught_by, passes)
    for name, factory, caught_by, passes in (
        ("half_precision_streams", HalfPrecisionStreams, _HALF, _BOTH),
        ("half_precision_parameters", HalfPrecisionParameters, _HALF, _BOTH),
        (
            "half_precision_gradients",
            HalfPrecisionGradients,
            ("test_half_precision_x_gets_full_precision_gradients",),
            _BOTH,
        ),
        ("two_roundings_of_y", TwoRoundingsOfY, _HALF, _BOTH),
        ("float32_out", Float32Out, _DTYPE, _BOTH),
        ("float32_gradient_out", Float32GradientOut, _DTYPE, _BOTH),
        ("float64_out", Float64Out, ("test_projection_keeps_shape_and_dtype",), (STATE_FILE,)),
        ("silent_fallback", SilentFallback, ("test_device_is_the_one_that_the_name_promises",), _BOTH),
        ("nan_in_x_becomes_zero", NanInXBecomesZero, _TOKEN, _BOTH),
        ("one_token_spoils_all", OneTokenSpoilsAll, _TOKEN, _BOTH),
        (
            "nan_in_the_gate_becomes_closed",
            NanInTheGateBecomesClosed,
            ("test_a_gate_that_is_not_finite_is_never_a_number_in_between",),
            _BOTH,
        ),
        (
            "nan_in_the_basis_becomes_zero",
            NanInTheBasisBecomesZero,
            ("test_a_parameter_that_is_not_finite_never_gives_a_finite_number",),
            _BOTH,
        ),
        ("first_gate_for_all", FirstGateForAll, ("test_a_gate_per_stream_is_refused",), _BOTH),
        (
            "iterations_at_least_one",
            IterationsAtLeastOne,
            ("test_iterations_that_are_no_integer_above_0_are_refused",),
            _BOTH,
        ),
        (
            "cuts_to_a_square",
            CutsToASquare,
            ("test_logits_that_are_not_square_are_refused",),
            (*_ALL, ORTHOGONAL),
        ),
    )
)

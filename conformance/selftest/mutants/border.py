"""Faults at the border of a port: dtypes, devices, values that are not finite, shapes."""

from functools import partial
from typing import Any

import numpy as np

from backends.interface import Gradients
from conformance.selftest.mutants.around import (
    BASIS,
    FORWARD,
    GATE,
    PROJECT,
    PULL_BACK,
    VJP,
    Given,
    Returns,
    X,
    argument,
    cut_to_a_square,
    first_gate,
    without_nan,
)
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


class TwoRoundingsOfY(NumpyPort):
    """What is added to x is rounded to the dtype of x, and their sum again."""

    def adapter_forward(self, x: Array, *parameters: Any) -> Array:
        y = super().adapter_forward(np.asarray(x, self.parameter_dtype), *parameters)
        return np.asarray(x + (y - x.astype(self.parameter_dtype)).astype(x.dtype))


class SilentFallback(NumpyPort):
    """Named for a GPU, and computes on the CPU."""

    name = "mutant-cuda"


class OneTokenSpoilsAll(NumpyPort):
    """One product of a whole batch, padded with zero weights: 0 times NaN is NaN."""

    def read(self, tokens: Array, basis: Array) -> Array:
        streams = super().read(tokens, basis)
        return streams + 0 * streams.sum()


class NanInTheGateBecomesClosed(NumpyPort):
    """``where(gamma >= 0, ..., ...)`` and a NaN gives a gate of 0: y = x."""

    def sigmoid(self, value: Array) -> Any:
        return np.nan_to_num(super().sigmoid(value), nan=0.0)


def with_a_rounded_basis(x: Array, logits: Array, gate: Array, basis: Array, *others: Any) -> tuple[Any, ...]:
    """The basis is rounded to the dtype of x, and the rest done in float32."""
    return x, logits, gate, basis.astype(x.dtype).astype(basis.dtype), *others


def rounded_parameters(gradients: Gradients, x: Array, *_: Any) -> Gradients:
    """The gradients of the parameters are rounded to the dtype of x on their way."""
    return Gradients(gradients.x, *(gradient.astype(x.dtype).astype(gradient.dtype) for gradient in gradients[1:]))


def in_float32(x: Array) -> Array:
    return np.asarray(x, np.float32)


def with_k_at_least_1(*given: Any) -> tuple[Any, ...]:
    return *given[:-1], max(1, given[-1])


_HALF = ("test_half_precision_x_with_full_precision_inside",)
_TOKEN = ("test_a_token_that_is_not_finite_passes_through_and_touches_no_other",)
_DTYPE = ("test_result_has_the_dtype_and_shape_of_x",)
_HALF_GRADIENTS = ("test_half_precision_x_gets_full_precision_gradients",)
_SHAPE = ("test_projection_keeps_shape_and_dtype",)
_NAN_GATE = ("test_a_gate_that_is_not_finite_is_never_a_number_in_between",)
_NAN_PARAMETER = ("test_a_parameter_that_is_not_finite_never_gives_a_finite_number",)
_GATES = ("test_a_gate_per_stream_is_refused",)
_K = ("test_iterations_that_are_no_integer_above_0_are_refused",)
_SQUARE = ("test_logits_that_are_not_square_are_refused",)
_BOTH = (PROJECTION, ADAPTER, STATE_FILE)
_ADAPTER = FORWARD + VJP
MUTANTS = tuple(
    Mutant(name, factory, caught_by, passes)
    for name, factory, caught_by, passes in (
        ("half_precision_streams", HalfPrecisionStreams, _HALF, _BOTH),
        ("half_precision_parameters", partial(Given, _ADAPTER, with_a_rounded_basis), _HALF, _BOTH),
        ("half_precision_gradients", partial(Returns, VJP, rounded_parameters), _HALF_GRADIENTS, _BOTH),
        ("two_roundings_of_y", TwoRoundingsOfY, _HALF, _BOTH),
        ("float32_out", partial(Given, FORWARD, argument(X, in_float32)), _DTYPE, _BOTH),
        ("float32_gradient_out", partial(Given, VJP, argument(X, in_float32)), _DTYPE, _BOTH),
        ("float64_out", partial(Returns, PROJECT, lambda mixing, *_: mixing.astype(np.float64)), _SHAPE, (STATE_FILE,)),
        ("silent_fallback", SilentFallback, ("test_device_is_the_one_that_the_name_promises",), _BOTH),
        ("nan_in_x_becomes_zero", partial(Given, FORWARD, argument(X, np.nan_to_num)), _TOKEN, _BOTH),
        ("one_token_spoils_all", OneTokenSpoilsAll, _TOKEN, _BOTH),
        ("nan_in_the_gate_becomes_closed", NanInTheGateBecomesClosed, _NAN_GATE, _BOTH),
        (
            "nan_in_the_basis_becomes_zero",
            partial(Given, _ADAPTER, argument(BASIS, without_nan)),
            _NAN_PARAMETER,
            _BOTH,
        ),
        ("first_gate_for_all", partial(Given, _ADAPTER, argument(GATE, first_gate)), _GATES, _BOTH),
        ("iterations_at_least_one", partial(Given, PROJECT + PULL_BACK + _ADAPTER, with_k_at_least_1), _K, _BOTH),
        (
            "cuts_to_a_square",
            partial(Given, PROJECT, argument(0, cut_to_a_square)),
            _SQUARE,
            (PROJECTION, STATE_FILE, ORTHOGONAL),
        ),
    )
)

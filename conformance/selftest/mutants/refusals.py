"""Faults of a VJP that is more lenient than its forward function, of 16-bit x, and of gates that are clamped."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from backends.interface import Gradients
from conformance.selftest.mutants.around import (
    BASIS,
    COTANGENT,
    FORWARD,
    GATE,
    LOGITS,
    PULL_BACK,
    VJP,
    Given,
    Returns,
    X,
    argument,
    first_gate,
    without_nan,
)
from conformance.selftest.mutants.base import STATE_FILE, Mutant
from conformance.selftest.port import Array, NumpyPort


def with_logits_cut(x: Array, logits: Array, gate: Array, basis: Array, *others: Any) -> tuple[Any, ...]:
    """To the number of streams of the basis."""
    n = len(basis)
    return x, logits[..., :n, :n] if logits.ndim == 2 else logits, gate, basis, *others


def with_the_cotangent_broadcast(*given: Any) -> tuple[Any, ...]:
    """To the shape of the first argument, x or S."""
    *others, cotangent, iterations = given
    return *others, np.broadcast_to(cotangent, others[0].shape), iterations


def with_squares(logits: Array, cotangent: Array, iterations: int) -> tuple[Any, ...]:
    n = min(logits.shape[-2:]) if logits.ndim > 1 else 0
    return logits[..., :n, :n], cotangent[..., :n, :n], iterations


def nines(logits: Array) -> Array:
    return np.nan_to_num(logits, posinf=9, neginf=-9)


def clipped(cotangent: Array) -> Array:
    """Infinities become large numbers."""
    return np.clip(cotangent, -1e30, 1e30)


def forgetting_one_stream(gradients: Gradients, *given: Any) -> Gradients:
    """With one stream the gradients of the parameters are zeros, whatever x and the cotangent hold."""
    if len(given[BASIS]) > 1:
        return gradients
    return Gradients(gradients.x, *(np.zeros_like(gradient) for gradient in gradients[1:]))


class ClampsTheGate(NumpyPort):
    """At 15 on either side, as some do to keep a sigmoid from saturating."""

    def sigmoid(self, value: Any) -> Any:
        return super().sigmoid(np.clip(value, -15, 15))


def by_a_rounded_sigmoid(gradients: Gradients, *given: Any) -> Gradients:
    """The derivative of the gate is s (1 - s), of a rounded s."""
    gate, sigmoid, one = np.asarray(np.ravel(given[GATE])[0], np.float32), NumpyPort().sigmoid, np.float32(1)
    with np.errstate(all="ignore"):
        right, wrong = sigmoid(gate) * sigmoid(np.asarray(-gate)), sigmoid(gate) * (one - sigmoid(gate))
        factor = wrong / right if right > 0 else one
    return gradients._replace(gate_logit=np.asarray(gradients.gate_logit * factor))


def through_float16(x: Array) -> Array:
    """x in bfloat16 is read by way of float16."""
    with np.errstate(all="ignore"):
        return x.astype(np.float32).astype(np.float16).astype(x.dtype) if x.dtype.name == "bfloat16" else x


def saturated(y: Array, *_: Any) -> Array:
    """What overflows float16 becomes its largest number."""
    return np.nan_to_num(y, nan=np.nan, posinf=65504, neginf=-65504) if y.dtype == np.float16 else y


def unsigned(y: Array, *_: Any) -> Array:
    """What overflows float16 becomes +inf, whatever its sign."""
    return np.where(np.isneginf(y), y.dtype.type(np.inf), y) if y.dtype == np.float16 else y


def overflowing_early(y: Array, x: Array, *parameters: Any) -> Array:
    """What is larger than the largest float16 becomes an infinity, even where it is to be rounded to it."""
    if y.dtype != np.float16:
        return y
    exact = NumpyPort().adapter_forward(x.astype(np.float64), *parameters)
    return np.where(np.abs(exact) > 65504.0, np.copysign(np.float16(np.inf), y), y)


def without_nan_of_half(x: Array) -> Array:
    return np.nan_to_num(x) if x.dtype == np.float16 else x


def without_subnormals_of_half(x: Array) -> Array:
    if x.dtype != np.float16:
        return x
    return np.where(np.abs(x) < np.finfo(np.float16).tiny, np.float16(0), x)


_PARAMETER = ("test_a_parameter_that_is_not_finite_never_gives_a_finite_number",)
_TOKEN = ("test_a_token_that_is_not_finite_passes_through_and_touches_no_other",)
_GATE = ("test_a_gate_that_is_not_finite_is_never_a_number_in_between",)
_COTANGENT = ("test_a_cotangent_of_the_adapter_that_is_not_finite_is_not_hidden",)
_SHAPE = ("test_a_cotangent_of_the_adapter_of_another_shape_is_refused",)
_PROJECTION = ("test_logits_that_are_not_finite_never_give_a_finite_number",)
_COTANGENT_OF_M = ("test_a_cotangent_of_the_projection_that_is_not_finite_is_not_hidden",)
_SHAPE_OF_M = ("test_a_cotangent_of_the_projection_of_another_shape_is_refused",)
_OVERFLOW = ("test_what_rounds_beyond_the_largest_float16_is_an_infinity",)
_ADAPTER = ("test_design::test_adapter",)
#: name, the functions that are given something else, the change, its tests, layouts
_GIVEN: list[tuple[str, tuple[str, ...], Callable[..., tuple[Any, ...]], tuple[str, ...], str]] = [
    ("vjp_hides_nan_of_x", VJP, argument(X, without_nan), _TOKEN, ""),
    ("vjp_hides_nan_of_logits", VJP, argument(LOGITS, nines), _PARAMETER, ""),
    ("vjp_hides_nan_of_gate", VJP, argument(GATE, np.nan_to_num), _GATE, ""),
    ("vjp_hides_nan_of_basis", VJP, argument(BASIS, without_nan), _PARAMETER, ""),
    ("vjp_clips_the_cotangent", VJP, argument(COTANGENT, clipped), _COTANGENT, ""),
    (
        "vjp_takes_the_first_gate",
        VJP,
        argument(GATE, first_gate),
        ("test_a_gate_per_stream_is_refused",),
        "",
    ),
    ("vjp_broadcasts_the_cotangent", VJP, with_the_cotangent_broadcast, _SHAPE, ""),
    ("vjp_cuts_the_logits", VJP, with_logits_cut, ("test_sizes_that_do_not_fit_are_refused",), ""),
    ("projection_vjp_hides_nan", PULL_BACK, argument(0, nines), _PROJECTION, ""),
    ("projection_vjp_clips_the_cotangent", PULL_BACK, argument(1, clipped), _COTANGENT_OF_M, ""),
    ("projection_vjp_broadcasts_the_cotangent", PULL_BACK, with_the_cotangent_broadcast, _SHAPE_OF_M, ""),
    ("projection_vjp_cuts_to_a_square", PULL_BACK, with_squares, ("test_logits_that_are_not_square_are_refused",), ""),
    ("bfloat16_through_float16", FORWARD, argument(X, through_float16), _ADAPTER, "-bfloat16-"),
    (
        "float16_hides_nan",
        FORWARD,
        argument(X, without_nan_of_half),
        ("test_adapter_with_a_number_that_is_not_finite",),
        "-float16-x_nan",
    ),
    (
        "float16_flushes_subnormals",
        FORWARD,
        argument(X, without_subnormals_of_half),
        _ADAPTER,
        "-float16-x_subnormal",
    ),
]
_RETURNS: list[tuple[str, tuple[str, ...], Callable[..., Any], tuple[str, ...]]] = [
    ("one_stream_hides_nan", VJP, forgetting_one_stream, (*_TOKEN, *_COTANGENT)),
    ("gate_by_rounded_sigmoid", VJP, by_a_rounded_sigmoid, ("test_every_gate",)),
    ("float16_saturates", FORWARD, saturated, _OVERFLOW),
    ("float16_overflows_without_sign", FORWARD, unsigned, _OVERFLOW),
    ("float16_overflows_early", FORWARD, overflowing_early, _OVERFLOW),
]
MUTANTS = (
    *(Mutant(name, partial(Given, of, change), tests, (STATE_FILE,), at) for name, of, change, tests, at in _GIVEN),
    *(Mutant(name, partial(Returns, of, change), tests, (STATE_FILE,)) for name, of, change, tests in _RETURNS),
    Mutant("gate_clamped_at_15", ClampsTheGate, ("test_every_gate",), (STATE_FILE,)),
)

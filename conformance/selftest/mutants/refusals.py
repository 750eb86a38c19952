"""Faults of a VJP that is more lenient than its forward function, of 16-bit x, and of gates that are clamped."""

from typing import Any

import numpy as np

from backends.interface import Gradients
from conformance.selftest.mutants.base import STATE_FILE, Mutant
from conformance.selftest.port import Array, NumpyPort


class LenientVjp(NumpyPort):
    """The VJP alone changes its arguments before it looks at them."""

    def changed(self, x: Array, logits: Array, gate: Array, basis: Array, cotangent: Array) -> tuple[Any, ...]:
        return x, logits, gate, basis, cotangent

    def adapter_vjp(self, *inputs: Any) -> Gradients:
        x, logits, gate, basis, cotangent = self.changed(*inputs[:5])
        return super().adapter_vjp(x, logits, gate, basis, cotangent, inputs[5])


class HidesNanOfX(LenientVjp):
    def changed(self, x: Array, *others: Array) -> tuple[Any, ...]:
        return np.nan_to_num(x, posinf=0, neginf=0), *others


class HidesNanOfLogits(LenientVjp):
    def changed(self, x: Array, logits: Array, *others: Array) -> tuple[Any, ...]:
        return x, np.nan_to_num(logits, posinf=9, neginf=-9), *others


class HidesNanOfGate(LenientVjp):
    def changed(self, x: Array, logits: Array, gate: Array, *others: Array) -> tuple[Any, ...]:
        return x, logits, np.nan_to_num(gate), *others


class HidesNanOfBasis(LenientVjp):
    def changed(self, x: Array, logits: Array, gate: Array, basis: Array, cotangent: Array) -> tuple[Any, ...]:
        return x, logits, gate, np.nan_to_num(basis, posinf=0, neginf=0), cotangent


class ClipsTheCotangent(LenientVjp):
    """Infinities become large numbers."""

    def changed(self, *inputs: Array) -> tuple[Any, ...]:
        return *inputs[:4], np.clip(inputs[4], -1e30, 1e30)


class TakesTheFirstGate(LenientVjp):
    def changed(self, x: Array, logits: Array, gate: Array, *others: Array) -> tuple[Any, ...]:
        return x, logits, np.ravel(gate)[:1].reshape(()), *others


class BroadcastsTheCotangent(LenientVjp):
    def changed(self, *inputs: Array) -> tuple[Any, ...]:
        return *inputs[:4], np.broadcast_to(inputs[4], inputs[0].shape)


class CutsTheLogits(LenientVjp):
    """To the number of streams of the basis."""

    def changed(self, x: Array, logits: Array, gate: Array, basis: Array, cotangent: Array) -> tuple[Any, ...]:
        n = len(basis)
        cut = logits[..., :n, :n] if logits.ndim == 2 else logits
        return x, cut, gate, basis, cotangent


class LenientProjectionVjp(NumpyPort):
    """As :class:`LenientVjp`, of the projection."""

    def sinkhorn_projection_vjp(self, mix_logits: Array, cotangent: Array, iterations: int) -> Array:
        return super().sinkhorn_projection_vjp(*self.changed_pair(mix_logits, cotangent), iterations)

    def changed_pair(self, logits: Array, cotangent: Array) -> tuple[Array, Array]:
        return logits, cotangent


class HidesNanOfProjectionLogits(LenientProjectionVjp):
    def changed_pair(self, logits: Array, cotangent: Array) -> tuple[Array, Array]:
        return np.nan_to_num(logits, posinf=9, neginf=-9), cotangent


class ClipsTheCotangentOfM(LenientProjectionVjp):
    def changed_pair(self, logits: Array, cotangent: Array) -> tuple[Array, Array]:
        return logits, np.clip(cotangent, -1e30, 1e30)


class BroadcastsTheCotangentOfM(LenientProjectionVjp):
    def changed_pair(self, logits: Array, cotangent: Array) -> tuple[Array, Array]:
        return logits, np.broadcast_to(cotangent, logits.shape)


class CutsLogitsToASquare(LenientProjectionVjp):
    def changed_pair(self, logits: Array, cotangent: Array) -> tuple[Array, Array]:
        n = min(logits.shape[-2:]) if logits.ndim > 1 else 0
        return logits[..., :n, :n], cotangent[..., :n, :n]


class ForgetsOneStream(NumpyPort):
    """With one stream the gradients of the parameters are zeros, whatever x and the cotangent hold."""

    def adapter_vjp(self, *inputs: Any) -> Gradients:
        gradients = super().adapter_vjp(*inputs)
        if len(inputs[3]) > 1:
            return gradients
        return Gradients(gradients.x, *(np.zeros_like(gradient) for gradient in gradients[1:]))


class ClampsTheGate(NumpyPort):
    """At 15 on either side, as some do to keep a sigmoid from saturating."""

    def sigmoid(self, value: Any) -> Any:
        return super().sigmoid(np.clip(value, -15, 15))


class SquaresOfSigmoid(NumpyPort):
    """The derivative of the gate is s (1 - s), of a rounded s."""

    def adapter_vjp(self, *inputs: Any) -> Gradients:
        gradients = super().adapter_vjp(*inputs)
        gate = np.asarray(np.ravel(inputs[2])[0], np.float32)
        with np.errstate(all="ignore"):
            one, right = np.float32(1), self.sigmoid(gate) * self.sigmoid(np.asarray(-gate))
            wrong = self.sigmoid(gate) * (one - self.sigmoid(gate))
            factor = wrong / right if right > 0 else one
        return gradients._replace(gate_logit=np.asarray(gradients.gate_logit * factor))


class Bfloat16ThroughFloat16(NumpyPort):
    """x in bfloat16 is read by way of float16."""

    def adapter_forward(self, x: Array, *parameters: Any) -> Array:
        if x.dtype.name != "bfloat16":
            return super().adapter_forward(x, *parameters)
        with np.errstate(all="ignore"):
            return super().adapter_forward(x.astype(np.float32).astype(np.float16).astype(x.dtype), *parameters)


class SaturatesHalf(NumpyPort):
    """What overflows float16 becomes its largest number."""

    def adapter_forward(self, x: Array, *parameters: Any) -> Array:
        y = super().adapter_forward(x, *parameters)
        return np.nan_to_num(y, nan=np.nan, posinf=65504, neginf=-65504) if y.dtype == np.float16 else y


class UnsignedInfinity(NumpyPort):
    """What overflows float16 becomes +inf, whatever its sign."""

    def adapter_forward(self, x: Array, *parameters: Any) -> Array:
        y = super().adapter_forward(x, *parameters)
        return np.where(np.isneginf(y), y.dtype.type(np.inf), y) if y.dtype == np.float16 else y


class OverflowsEarly(NumpyPort):
    """What is larger than the largest float16 becomes an infinity, even where it is to be rounded to it."""

    def adapter_forward(self, x: Array, *parameters: Any) -> Array:
        y = super().adapter_forward(x, *parameters)
        if y.dtype != np.float16:
            return y
        exact = super().adapter_forward(x.astype(np.float64), *parameters)
        return np.where(np.abs(exact) > 65504.0, np.copysign(np.float16(np.inf), y), y)


class HidesNanOfHalf(NumpyPort):
    """NaN in a float16 x is read as 0."""

    def adapter_forward(self, x: Array, *parameters: Any) -> Array:
        return super().adapter_forward(np.nan_to_num(x) if x.dtype == np.float16 else x, *parameters)


class FlushesHalf(NumpyPort):
    """Subnormal numbers of float16 are read as 0."""

    def adapter_forward(self, x: Array, *parameters: Any) -> Array:
        if x.dtype == np.float16:
            x = np.where(np.abs(x) < np.finfo(np.float16).tiny, np.float16(0), x)
        return super().adapter_forward(x, *parameters)


_PARAMETER = ("test_a_parameter_that_is_not_finite_never_gives_a_finite_number",)
_TOKEN = ("test_a_token_that_is_not_finite_passes_through_and_touches_no_other",)
_GATE = ("test_a_gate_that_is_not_finite_is_never_a_number_in_between",)
_COTANGENT = ("test_a_cotangent_of_the_adapter_that_is_not_finite_is_not_hidden",)
_PROJECTION = ("test_logits_that_are_not_finite_never_give_a_finite_number",)
_OVERFLOW = ("test_what_rounds_beyond_the_largest_float16_is_an_infinity",)
_ADAPTER = ("test_design::test_adapter",)
MUTANTS = tuple(
    Mutant(name, factory, caught_by, (STATE_FILE,), layouts)
    for name, factory, caught_by, layouts in (
        ("vjp_hides_nan_of_x", HidesNanOfX, _TOKEN, ""),
        ("vjp_hides_nan_of_logits", HidesNanOfLogits, _PARAMETER, ""),
        ("vjp_hides_nan_of_gate", HidesNanOfGate, _GATE, ""),
        ("vjp_hides_nan_of_basis", HidesNanOfBasis, _PARAMETER, ""),
        ("vjp_clips_the_cotangent", ClipsTheCotangent, _COTANGENT, ""),
        ("vjp_takes_the_first_gate", TakesTheFirstGate, ("test_a_gate_per_stream_is_refused",), ""),
        (
            "vjp_broadcasts_the_cotangent",
            BroadcastsTheCotangent,
            ("test_a_cotangent_of_the_adapter_of_another_shape_is_refused",),
            "",
        ),
        ("vjp_cuts_the_logits", CutsTheLogits, ("test_sizes_that_do_not_fit_are_refused",), ""),
        ("projection_vjp_hides_nan", HidesNanOfProjectionLogits, _PROJECTION, ""),
        (
            "projection_vjp_clips_the_cotangent",
            ClipsTheCotangentOfM,
            ("test_a_cotangent_of_the_projection_that_is_not_finite_is_not_hidden",),
            "",
        ),
        (
            "projection_vjp_broadcasts_the_cotangent",
            BroadcastsTheCotangentOfM,
            ("test_a_cotangent_of_the_projection_of_another_shape_is_refused",),
            "",
        ),
        (
            "projection_vjp_cuts_to_a_square",
            CutsLogitsToASquare,
            ("test_logits_that_are_not_square_are_refused",),
            "",
        ),
        ("one_stream_hides_nan", ForgetsOneStream, (*_TOKEN, *_COTANGENT), ""),
        ("gate_clamped_at_15", ClampsTheGate, ("test_every_gate",), ""),
        ("gate_by_rounded_sigmoid", SquaresOfSigmoid, ("test_every_gate",), ""),
        ("bfloat16_through_float16", Bfloat16ThroughFloat16, _ADAPTER, "-bfloat16-"),
        ("float16_saturates", SaturatesHalf, _OVERFLOW, ""),
        ("float16_overflows_without_sign", UnsignedInfinity, _OVERFLOW, ""),
        ("float16_overflows_early", OverflowsEarly, _OVERFLOW, ""),
        ("float16_hides_nan", HidesNanOfHalf, ("test_adapter_with_a_number_that_is_not_finite",), "-float16-x_nan"),
        ("float16_flushes_subnormals", FlushesHalf, _ADAPTER, "-float16-x_subnormal"),
    )
)

"""Faults that show in one kind of call alone: with a batch, with x in 16 bits, with many streams, many axes, a large K.

``THERE`` x ``FAULTS`` makes them: a rule that a suite asks of one case alone is kept there, and broken elsewhere.
"""

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from conformance.selftest.mutants.around import PROJECT, Around, Given, argument, arrays_of, cut_to_a_square, each_array
from conformance.selftest.mutants.base import Mutant
from conformance.selftest.mutants.process import TRACES, LeavesBehind
from conformance.selftest.port import Array, NumpyPort

Arguments = tuple[Any, ...]
Right = partial[Any]  # of the right port, with the name of the function as its first argument


def _is_adapter(function: str) -> bool:
    return function.startswith("adapter")


#: name -> whether a call is one of these
THERE: dict[str, Callable[[str, Arguments], bool]] = {
    "a_batch": lambda function, given: function.startswith("sinkhorn") and np.ndim(given[0]) > 2,
    "16_bits": lambda function, given: _is_adapter(function) and given[0].dtype.itemsize == 2,
    "many_streams": lambda function, given: _is_adapter(function) and np.shape(given[3])[:1] >= (4,),
    "many_axes": lambda function, given: _is_adapter(function) and np.ndim(given[0]) > 2,
    "large_k": lambda function, given: type(given[-1]) is int and given[-1] >= 10 and not function.endswith("state"),
}


class Scoped(Around):
    """``fault`` takes the place of the calls that ``there`` picks out."""

    def __init__(self, there: Callable[[str, Arguments], bool], fault: Callable[..., Any]) -> None:
        super().__init__()
        self.there, self.fault = there, fault

    def call(self, function: str, *arguments: Any) -> Any:
        right = partial(super().call, function)
        return self.fault(self, right, *arguments) if self.there(function, arguments) else right(*arguments)


def changes_its_argument(port: Scoped, right: Right, *given: Any) -> Any:
    result = right(*given)
    for array in arrays_of(given):
        if array.flags.writeable and array.size:
            array[...] = 0
    return result


def one_buffer(port: Scoped, right: Right, *given: Any) -> Any:
    def stored(part: Array) -> Array:
        number = next(numbers)
        buffer = port.kept.setdefault((right.args, number, part.shape, part.dtype.name), np.empty_like(part))
        buffer[...] = part
        return np.asarray(buffer)

    numbers = iter(range(9))
    return each_array(stored, right(*given))


def keeps_its_arguments(port: Scoped, right: Right, *given: Any) -> Any:
    port.kept[right.args] = given
    return right(*given)


def leaves(trace: Callable[[], object]) -> Callable[..., Any]:
    """``trace`` is done beside the call."""

    def fault(port: Scoped, right: Right, *given: Any) -> Any:
        trace()
        return right(*given)

    return fault


def cleans(port: Scoped, right: Right, *given: Any) -> Any:
    """What is not finite becomes a number."""
    clean = (np.nan_to_num(a.astype(np.float32), posinf=9.0, neginf=-9.0).astype(a.dtype) for a in arrays_of(given))
    return right(*clean, given[-1])


def broadcasts(port: Scoped, right: Right, *given: Any) -> Any:
    """The cotangent, to the shape of the forward result."""
    if right.args[0].endswith("vjp"):
        given = (*given[:-2], np.broadcast_to(given[-2], np.shape(given[0])).copy(), given[-1])
    return right(*given)


def takes_any_k(port: Scoped, right: Right, *given: Any) -> Any:
    return right(*given[:-1], max(int(given[-1]), 1))


_KEPT = ("test_arguments_stay_as_they_are",)
_RESULT = ("test_a_result_shares_no_memory", "test_a_result_stays_as_it_is")
_PROCESS = ("test_the_state_of_the_process_is_left_alone",)
#: name -> fault, the tests that must notice, and where it is no fault or is tried otherwise
FAULTS: dict[str, tuple[Callable[..., Any], tuple[str, ...], tuple[str, ...]]] = {
    "changes_its_argument": (changes_its_argument, _KEPT, ()),
    "hands_out_one_buffer": (one_buffer, _RESULT, ()),
    "keeps_its_arguments": (
        keeps_its_arguments,
        ("test_no_argument_is_kept",),
        ("many_streams", "many_axes", "large_k"),
    ),
    "seeds_the_generator": (leaves(TRACES["numpy_random_seeded"]), _PROCESS, ()),
    "sets_the_error_handling": (leaves(TRACES["numpy_errors_are_ignored"]), _PROCESS, ()),
    "sets_the_environment": (leaves(TRACES["environment_is_set"]), _PROCESS, ()),
    "cleans_what_is_not_finite": (cleans, (), ("large_k",)),
    "broadcasts_the_cotangent": (broadcasts, (), ("large_k",)),
    "takes_any_k": (takes_any_k, ("test_iterations_that_are_no_integer_above_0_are_refused",), ("large_k",)),
}
_ON_THE_ADAPTER = {
    "cleans_what_is_not_finite": (
        "test_a_parameter_that_is_not_finite_never_gives_a_finite_number",
        "test_a_cotangent_of_the_adapter_that_is_not_finite_is_not_hidden",
    ),
    "broadcasts_the_cotangent": ("test_a_cotangent_of_the_adapter_of_another_shape_is_refused",),
}
_ON_THE_PROJECTION = {
    "cleans_what_is_not_finite": (
        "test_logits_that_are_not_finite_never_give_a_finite_number",
        "test_a_cotangent_of_the_projection_that_is_not_finite_is_not_hidden",
    ),
    "broadcasts_the_cotangent": ("test_a_cotangent_of_the_projection_of_another_shape_is_refused",),
}


def _factory() -> tuple[Mutant, ...]:
    made = []
    for there, picks in THERE.items():
        for name, (fault, tests, left_out) in FAULTS.items():
            if there in left_out:
                continue
            own = (_ON_THE_PROJECTION if there == "a_batch" else _ON_THE_ADAPTER).get(name, tests)
            made.append(Mutant(f"{name}_with_{there}", partial(Scoped, picks, fault), own, ()))
    return tuple(made)


class KeepsTheErrorOfARefusal(Around):
    """And with its traceback the arguments."""

    def call(self, function: str, *arguments: Any) -> Any:
        try:
            return super().call(function, *arguments)
        except Exception as error:
            self.last = error
            raise


class SetsUpAtItsFirstCall(Around):
    done = False

    def call(self, function: str, *arguments: Any) -> Any:
        if not self.done:
            SetsUpAtItsFirstCall.done = True
            np.random.seed(0)  # noqa: NPY002
            np.seterr(all="ignore")
        return super().call(function, *arguments)


def open_a_file() -> None:
    if len(os.listdir("/proc/self/fd")) < 500:
        os.open(os.devnull, os.O_RDONLY)


def start_a_thread() -> None:
    if threading.active_count() < 200:
        threading.Thread(target=time.sleep, args=(3000,), daemon=True).start()


class OneNumberForAConstantMatrix(NumpyPort):
    def sinkhorn_projection(self, mix_logits: Array, iterations: int) -> Array:
        mixing = super().sinkhorn_projection(mix_logits, iterations)
        constant = mixing.size > 1 and bool((mixing == mixing.flat[0]).all())
        return np.lib.stride_tricks.as_strided(mixing, mixing.shape, (0,) * mixing.ndim) if constant else mixing


class BatchTakenForAnotherAxis(NumpyPort):
    """As many matrices as rows: (n, n, n) is read with its last axis for the first."""

    def sinkhorn_projection(self, mix_logits: Array, iterations: int) -> Array:
        if mix_logits.ndim == 3 and mix_logits.shape[0] == mix_logits.shape[1] > 1:
            mix_logits = np.moveaxis(mix_logits, 0, 2)
            return np.moveaxis(super().sinkhorn_projection(mix_logits, iterations), 2, 0).copy()
        return super().sinkhorn_projection(mix_logits, iterations)


class TokensTakenForStreams(NumpyPort):
    """As many tokens as streams: their changes come in the reverse order."""

    def adapter_forward(self, x: Array, *parameters: Any) -> Array:
        y = super().adapter_forward(x, *parameters)
        return (x + (y - x)[::-1]).astype(x.dtype) if x.ndim == 2 and len(x) == len(parameters[2]) else y


class KOfSevenBits(NumpyPort):
    def sinkhorn_projection(self, mix_logits: Array, iterations: int) -> Array:
        return super().sinkhorn_projection(mix_logits, min(iterations, 127) if type(iterations) is int else iterations)


class SixAxesAtMost(NumpyPort):
    def adapter_forward(self, x: Array, *parameters: Any) -> Array:
        y = super().adapter_forward(x, *parameters)
        return y[::-1].copy() if x.ndim > 6 else y


class AutodiffOf16BitsIsZero(NumpyPort):
    def adapter_autodiff(self, x: Array, *given: Any) -> Any:
        gradients = self.adapter_vjp(x, *given)
        return gradients if x.dtype.itemsize > 2 else each_array(np.zeros_like, gradients)


class EmptyBatchesAreNotLookedAt(NumpyPort):
    def sinkhorn_projection(self, mix_logits: Array, iterations: int) -> Array:
        if np.ndim(mix_logits) > 2 and not mix_logits.size and min(mix_logits.shape[-2:]) > 0:
            return np.zeros(mix_logits.shape, np.float32)
        return super().sinkhorn_projection(mix_logits, iterations)


class ZerosForABasisOfOneToken(NumpyPort):
    def adapter_forward(self, x: Array, *parameters: Any) -> Array:
        return x.copy() if x.ndim == 1 and not np.any(parameters[2]) else super().adapter_forward(x, *parameters)


def large_cut(logits: Array) -> Array:
    return cut_to_a_square(logits) if np.ndim(logits) >= 2 and min(logits.shape[-2:]) >= 5 else logits


_SQUARE = ("test_logits_that_are_not_square_are_refused",)
_BATCH = ("test_a_batch_of_matrices_is_read_matrix_by_matrix",)
_THOUSAND = ("test_the_same_arguments_give_the_same_bits_a_thousand_times",)
MUTANTS = _factory() + tuple(
    Mutant(name, factory, caught_by, ())
    for name, factory, caught_by in (
        ("keeps_the_error_of_a_refusal", KeepsTheErrorOfARefusal, ("test_no_argument_is_kept",)),
        ("sets_up_at_its_first_call", SetsUpAtItsFirstCall, ("test_the_first_calls_leave_the_process_alone",)),
        ("leaves_files_open", partial(LeavesBehind, open_a_file), _THOUSAND),
        ("leaves_threads_behind", partial(LeavesBehind, start_a_thread), _THOUSAND),
        ("one_number_for_a_constant_matrix", OneNumberForAConstantMatrix, _RESULT[:1]),
        ("batch_taken_for_another_axis", BatchTakenForAnotherAxis, _BATCH),
        ("tokens_taken_for_streams", TokensTakenForStreams, ("test_sizes_that_coincide_are_not_exchanged",)),
        ("k_of_seven_bits", KOfSevenBits, ("test_as_many_iterations_as_are_asked_for",)),
        ("six_axes_at_most", SixAxesAtMost, ("test_tokens_with_many_axes",)),
        ("autodiff_of_16_bits_is_zero", AutodiffOf16BitsIsZero, ("test_automatic_differentiation_with_x_in_16_bits",)),
        ("cuts_logits_to_a_square", partial(Given, PROJECT, argument(0, large_cut)), _SQUARE),
        ("empty_batches_are_not_looked_at", EmptyBatchesAreNotLookedAt, _SQUARE),
        ("zeros_for_a_basis_of_one_token", ZerosForABasisOfOneToken, ("test_a_basis_of_zeros_gives_no_finite_value",)),
    )
)

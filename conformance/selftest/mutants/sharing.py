"""Faults of who owns an array: results that are arguments or each other, arguments that are written to or kept."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from conformance.selftest.mutants.around import (
    FORWARD,
    FUNCTIONS,
    LOAD,
    PROJECT,
    PULL_BACK,
    SAVE,
    VJP,
    Around,
    Given,
    X,
    arrays_of,
    each_array,
)
from conformance.selftest.mutants.base import ADAPTER, PROJECTION, STATE_FILE, Mutant
from conformance.selftest.port import Array


class Shortcut(Around):
    """Where ``when`` holds, ``result`` of the arguments is handed out in the place of what was computed."""

    def __init__(self, functions: tuple[str, ...], when: Callable[..., bool], result: Callable[..., Any]) -> None:
        super().__init__(functions)
        self.when, self.result = when, result

    def call(self, function: str, *arguments: Any) -> Any:
        computed = super().call(function, *arguments)
        return self.result(computed, *arguments) if self.when(*arguments) else computed


class OneArrayFor(Around):
    """Results of equal bits are one array."""

    def call(self, function: str, *arguments: Any) -> Any:
        result = super().call(function, *arguments)
        return each_array(lambda a: self.kept.setdefault((a.shape, a.dtype.str, a.tobytes()), a), result)


class OneBuffer(Around):
    """Results are written into memory that later results are written into again."""

    def __init__(self, functions: tuple[str, ...], size: int = 0) -> None:
        super().__init__(functions)
        self.memory = np.zeros(size, np.uint8)

    def call(self, function: str, *arguments: Any) -> Any:
        self.number = 0
        return each_array(self.placed, super().call(function, *arguments))

    def placed(self, array: Array) -> Array:
        """In the memory of all, if there is any, or in that of the arrays of this shape at this place of a result."""
        self.number += 1
        if 0 < array.nbytes <= len(self.memory) // 8:
            begin = (self.number - 1) * (len(self.memory) // 8)
            buffer = self.memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
        else:
            buffer = self.kept.setdefault((self.number, array.shape, array.dtype.str), np.empty_like(array))
        buffer[...] = array
        return buffer


class WritesTo(Around):
    """``act`` is done to the arrays among the arguments, to those alone that may be written to if it ``asks``."""

    def __init__(self, functions: tuple[str, ...], act: Callable[[Array], Any], asks: bool = True) -> None:
        super().__init__(functions)
        self.act, self.asks = act, asks

    def call(self, function: str, *arguments: Any) -> Any:
        result = super().call(function, *arguments)
        for array in arrays_of(arguments):
            if array.flags.writeable or not self.asks:
                self.act(array)
        return result


class DoubledMeanwhile(Around):
    """x is doubled in place, halved in the computation's stead, and put back, to the bit, when it is done."""

    def call(self, function: str, *arguments: Any) -> Any:
        x = arguments[X]
        if not x.flags.writeable:
            return super().call(function, *arguments)
        x *= 2
        try:
            return super().call(function, x / 2, *arguments[1:])
        finally:
            x /= 2


class ChangesBeforeItRefuses(Around):
    """What is not finite is replaced in the caller's array; then the call is refused all the same."""

    def call(self, function: str, *arguments: Any) -> Any:
        try:
            return super().call(function, *arguments)
        except Exception:
            for array in arrays_of(arguments):
                if array.flags.writeable and array.dtype.kind == "f":
                    np.nan_to_num(array, copy=False)
            raise


class KeepsArguments(Around):
    """Those of the last call of a function, for a backward pass that nobody asks for."""

    def call(self, function: str, *arguments: Any) -> Any:
        self.kept[function] = arguments
        return super().call(function, *arguments)


def all_aligned(*given: Any) -> tuple[Any, ...]:
    """Vector loads that fault at an address that is no multiple of a number's size."""
    if not all(array.flags.aligned for array in arrays_of(given)):
        raise ValueError("unaligned")
    return given


def repeated_as_zero(*given: Any) -> tuple[Any, ...]:
    """An axis of stride 0 is taken for an array without memory."""

    def read(a: Any) -> Any:
        repeated = isinstance(a, np.ndarray) and any(s == 0 < m - 1 for s, m in zip(a.strides, a.shape, strict=True))
        return np.zeros_like(a) if repeated else a

    return tuple(map(read, given))


def is_closed(x: Array, logits: Array, gate: Array, *_: Any) -> bool:
    return float(np.exp(np.minimum(gate.reshape(-1)[0], 0))) == 0.0


def is_closed_and_frozen(x: Array, *others: Any) -> bool:
    return is_closed(x, *others) and not x.flags.writeable


def is_closed_in_16_bits(x: Array, *others: Any) -> bool:
    return is_closed(x, *others) and x.dtype.itemsize == 2


def shifted_there_and_back(array: Array) -> None:
    array += array.dtype.type(0.1)
    array -= array.dtype.type(0.1)


def sorted_in_place(array: Array) -> None:
    array.reshape(-1).sort()


def frozen(array: Array) -> None:
    array.flags.writeable = False


def flattened(array: Array) -> None:
    if array.flags.c_contiguous:
        array.shape = (array.size,)


def is_no_tokens(x: Array, *_: Any) -> bool:
    return x.size == 0


def has_one_stream(x: Array, logits: Array, *_: Any) -> bool:
    return logits.shape == (1, 1)


def is_without_cotangent(*arguments: Any) -> bool:
    return not arguments[4].any()


def the_first(_: Any, x: Array, *others: Any) -> Array:
    return x


def with_the_cotangent(
    result: Any, x: Array, logits: Array, gate: Array, basis: Array, cotangent: Array, *_: Any
) -> Any:
    return result._replace(x=cotangent)


def with_its_own_zeros(result: Any, *_: Any) -> Any:
    return result._replace(
        mix_logits=result.basis.reshape(-1)[: result.mix_logits.size].reshape(result.mix_logits.shape)
    )


_BOTH = (PROJECTION, ADAPTER, STATE_FILE)
_SHARES = ("test_a_result_shares_no_memory",)
_STAYS = ("test_a_result_stays_as_it_is",)
_ARGUMENTS = ("test_arguments_stay_as_they_are",)
_READ = ("test_what_may_not_be_written_to_is_read",)
_BITS = ("test_every_number_of_16_bits_arrives_and_returns",)
_KEPT = ("test_no_argument_is_kept",)
_LIES = ("test_arrays_are_read_however_they_lie_in_memory",)
_THREADS = ("test_threads_get_the_bits_of_calls_one_after_another",)
_WRITTEN = ("test_what_is_written_to_a_result_stays_there",)
MUTANTS = tuple(
    Mutant(name, factory, caught_by, passes)
    for name, factory, caught_by, passes in (
        ("y_is_x_at_a_closed_gate", partial(Shortcut, FORWARD, is_closed, the_first), _SHARES, _BOTH),
        ("y_is_x_that_nobody_can_write_to", partial(Shortcut, FORWARD, is_closed_and_frozen, the_first), _READ, _BOTH),
        ("y_is_x_in_16_bits", partial(Shortcut, FORWARD, is_closed_in_16_bits, the_first), _BITS, _BOTH),
        ("y_is_x_without_tokens", partial(Shortcut, FORWARD, is_no_tokens, the_first), _SHARES, _BOTH),
        (
            "y_is_x_for_one_stream",
            partial(Shortcut, FORWARD, has_one_stream, the_first),
            _SHARES,
            (PROJECTION, STATE_FILE),
        ),
        (
            "x_bar_is_the_cotangent_for_one_stream",
            partial(Shortcut, VJP, has_one_stream, with_the_cotangent),
            _SHARES,
            _BOTH,
        ),
        (
            "x_bar_is_a_cotangent_of_zeros",
            partial(Shortcut, VJP, is_without_cotangent, with_the_cotangent),
            _SHARES,
            _BOTH,
        ),
        (
            "two_gradients_in_one_memory",
            partial(Shortcut, VJP, is_without_cotangent, with_its_own_zeros),
            _SHARES,
            _BOTH,
        ),
        ("one_array_for_equal_m", partial(OneArrayFor, PROJECT), (*_SHARES, *_WRITTEN), _BOTH),
        ("one_array_for_equal_gradients", partial(OneArrayFor, PULL_BACK), (*_SHARES, *_WRITTEN), _BOTH),
        ("one_array_for_equal_states", partial(OneArrayFor, LOAD), (*_SHARES, *_WRITTEN), _BOTH),
        ("loads_into_one_buffer", partial(OneBuffer, LOAD), (*_SHARES, *_STAYS), _BOTH),
        ("gradients_in_one_buffer", partial(OneBuffer, VJP), (*_SHARES, *_STAYS), _BOTH),
        ("pulls_back_into_one_buffer", partial(OneBuffer, PULL_BACK), (*_SHARES, *_STAYS), _BOTH),
        ("one_memory_for_all_functions", partial(OneBuffer, FUNCTIONS, 2**20), (*_SHARES, *_STAYS), _BOTH),
        ("saving_zeroes", partial(WritesTo, SAVE, lambda a: a.fill(0)), _ARGUMENTS, _BOTH),
        ("saving_sorts", partial(WritesTo, SAVE, sorted_in_place), _ARGUMENTS, _BOTH),
        ("pulling_back_sorts", partial(WritesTo, PULL_BACK, sorted_in_place), _ARGUMENTS, (PROJECTION, STATE_FILE)),
        ("shifts_there_and_back", partial(WritesTo, FORWARD, shifted_there_and_back), _ARGUMENTS, _BOTH),
        ("freezes_arguments", partial(WritesTo, FORWARD, frozen), _ARGUMENTS, _BOTH),
        ("flattens_arguments", partial(WritesTo, PULL_BACK, flattened), _ARGUMENTS, _BOTH),
        ("writes_without_asking", partial(WritesTo, VJP, lambda a: np.copyto(a, np.array(a)), False), _READ, _BOTH),
        ("doubled_meanwhile", partial(DoubledMeanwhile, FORWARD + VJP), _THREADS, _BOTH),
        ("changes_before_it_refuses", ChangesBeforeItRefuses, _ARGUMENTS, _BOTH),
        ("keeps_the_arguments_of_forward", partial(KeepsArguments, FORWARD), _KEPT, _BOTH),
        ("keeps_the_arguments_of_saving", partial(KeepsArguments, SAVE), _KEPT, _BOTH),
        ("refuses_unaligned", partial(Given, FUNCTIONS, all_aligned), _LIES, _BOTH),
        ("reads_repeated_as_zero", partial(Given, FUNCTIONS, repeated_as_zero), _LIES, (ADAPTER, STATE_FILE)),
    )
)

"""What a call may leave behind: nothing but its result, whatever was called before, and from whichever thread.

Each test asks it of every function that the port has. The arguments are few and small, so that a port that compiles for
a shape compiles little. Clauses: BACK-3, BACK-7 to BACK-12.
"""

import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from backends.interface import dtype_named
from backends.state_file import decode_state
from conformance.agreement import (
    HALF,
    INPUTS,
    adapter_change,
    adapter_gradients,
    assert_agrees,
    gradient_scales,
    inputs_of,
    projection,
    require_x_dtype,
)
from conformance.calls import Call, K, calls_of, case_of
from conformance.compare import assert_within
from conformance.first_call import first_changes
from conformance.memory import laid_out, unaligned
from conformance.process_state import (
    arithmetic_faults,
    changes,
    framework_settings,
    open_handles,
    process_state,
    surroundings,
    thread_state,
)
from conformance.profiles import slow
from conformance.strategies import Adapter
from conformance.tolerances import tolerance_for
from reference.errors import PortStoppedError

CALLS, SECONDS = 1000, 2.0  # of each function, as long as they are done in this time of the processor
LONGEST = 5 * SECONDS  # on a busy machine, and for a port in another process, whose time is not this one's
LEAKS = 20  # files or threads more, after as many calls of each function
THREADS, PHASE = 6, 0.15  # threads, and seconds for each function: each call at least once


def parts_of(result: Any) -> list[np.ndarray]:
    """The arrays of a result; the bytes of a file, and a K, as arrays of their own."""
    if isinstance(result, bytes):
        return [np.frombuffer(result, np.uint8).copy()]
    return [np.asarray(part) for part in (result if isinstance(result, tuple) else (result,))]


def bits_of(result: Any) -> list[tuple[Any, ...]]:
    return [(part.shape, part.dtype.str, part.tobytes()) for part in parts_of(result)]


def layout_of(array: np.ndarray) -> tuple[Any, ...]:
    return array.shape, array.strides, array.dtype.str, str(array.flags), array.tobytes()


def assert_owned(call: Call, result: Any) -> None:
    """No array of the result shares memory with an argument, or is one; each number has a place of its own."""
    for number, part in enumerate(parts_of(result)):
        repeated = any(size > 1 and not stride for size, stride in zip(part.shape, part.strides, strict=True))
        assert not (part.size and repeated), f"BACK-8: {call.function}, part {number}, has one number in several places"
        for array in call.arrays:
            shared = part is array or part.base is array or np.shares_memory(part, array)
            assert not shared, f"BACK-8: {call.function}, part {number}, shares memory with an argument"


def other_calls(backend: Any) -> list[Call]:
    """Of other values in the same shapes, and of another shape."""
    return [*calls_of(backend, case_of(seed=9)), *calls_of(backend, case_of(seed=11, n=1))]


def refused_calls(backend: Any) -> list[Call]:
    """Each function with what it must refuse, in the shapes that it is called with otherwise."""
    refused = []
    for call in calls_of(backend, case_of(seed=7)):
        if call.function == "load_state":
            refused += [Call("load_state", (call.arguments[0][:-3],)), Call("load_state", (b"",))]
            continue
        refused.append(Call(call.function, (*call.arguments[:-1], 0)))
        if call.function != "save_state":
            logits = call.arguments[0 if call.function.startswith("sinkhorn") else 1]
            bad = np.full_like(logits, np.nan)
            refused.append(Call(call.function, tuple(bad if a is logits else a for a in call.arguments)))
    return refused


def try_refused(backend: Any, calls: list[Call]) -> None:
    for call in calls:
        try:
            getattr(backend, call.function)(*call.arguments)
        except PortStoppedError:
            raise
        except Exception:
            continue


#: name -> how the base case is changed: where a result equals an argument, or there is nothing to compute
TEMPTING: dict[str, tuple[dict[str, Any], dict[str, Callable[[np.ndarray], np.ndarray]]]] = {
    "nothing": ({}, {}),
    "a closed gate": ({}, {"gate_logit": lambda gate: np.full_like(gate, -1e4)}),
    "M = I": ({}, {"mix_logits": lambda logits: 1e4 * np.eye(len(logits), dtype=logits.dtype)}),
    "D = 0": ({}, {"cotangent": np.zeros_like, "square": np.zeros_like}),
    "a constant cotangent of M": ({}, {"square": np.ones_like}),
    "x = 0": ({}, {"x": np.zeros_like}),
    "logits of zeros": ({}, {"mix_logits": np.zeros_like}),
    "one stream": ({"n": 1}, {}),
    slow("no tokens"): ({"leading": (0,)}, {}),
    slow("one iteration"): ({"iterations": 1}, {}),
    "equal logits": ({}, {"mix_logits": np.ones_like}),
    slow("five streams, two axes"): ({"n": 5, "leading": (2, 3), "iterations": 12}, {}),
    slow("many numbers"): ({"leading": (3, 700)}, {}),
}


def tempting_calls(backend: Any, name: str) -> list[Call]:
    drawn, changed = TEMPTING[name]
    case = case_of(**{key: value for key, value in drawn.items() if key != "iterations"})
    return calls_of(backend, case, drawn.get("iterations", K), **changed)


#: name -> how an array of one axis or more lies in memory; an odd address is one for a single number too
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "at an odd address": unaligned,
    "every second": partial(laid_out, memory="strided"),
    "backwards": partial(laid_out, memory="reversed"),
    "column by column": partial(laid_out, memory="Fortran"),
    "repeated": lambda array: array,  # as the arguments come
}
#: strides of 0
REPEATED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "x": lambda x: np.broadcast_to(x[:1], x.shape),
    "cotangent": lambda upstream: np.broadcast_to(upstream[1:2], upstream.shape),
    "square": lambda square: np.broadcast_to(square[:, :1], square.shape),
}


# -- arguments --


@pytest.mark.clause("BACK-7", "MIX-10")
@pytest.mark.parametrize("where", TEMPTING)
def test_arguments_stay_as_they_are(backend, where):
    """Their bits, shapes, strides and flags; of a call that is refused as well."""
    calls = tempting_calls(backend, where)
    refused = refused_calls(backend) if where == "nothing" else []
    before = [[layout_of(array) for array in call.arrays] for call in (*calls, *refused)]
    for call in calls:
        call(backend)
    try_refused(backend, refused)
    for call, layouts in zip((*calls, *refused), before, strict=True):
        assert [layout_of(array) for array in call.arrays] == layouts, f"BACK-7: {call.function} changed an argument"


@pytest.mark.clause("BACK-3", "BACK-7")
@pytest.mark.parametrize("where", TEMPTING)
def test_what_may_not_be_written_to_is_read(backend, where):
    """Not even for a moment: a write to such an array is an error or a crash. The bits are those of other arrays."""
    calls = tempting_calls(backend, where)
    expected = [bits_of(call(backend)) for call in calls]
    for call, bits in zip(calls, expected, strict=True):
        for array in call.arrays:
            array.flags.writeable = False
        result = call(backend)
        assert bits_of(result) == bits, f"BACK-3: {call.function}"
        assert_owned(call, result)


@pytest.mark.clause("BACK-7")
def test_no_argument_is_kept(backend):
    """Nobody but the caller knows it after the call: it is freed when the caller lets go of it."""
    warm = calls_of(backend, case_of())
    for call in warm:
        call(backend)
    for index, function in enumerate(call.function for call in warm):
        call = calls_of(backend, case_of(seed=6))[index]
        kept = [weakref.ref(array) for array in call.arrays]
        result = call(backend)
        del call
        assert_freed(kept, function)
        del result
    for refused in refused_calls(backend):
        call = refused.with_arrays(np.array)
        kept = [weakref.ref(array) for array in call.arrays]
        try_refused(backend, [call])
        del call
        assert_freed(kept, f"{refused.function}, in a call that is refused,")


def assert_freed(kept: list[weakref.ref[np.ndarray]], function: str) -> None:
    if any(reference() is not None for reference in kept):
        gc.collect()
    assert not [reference for reference in kept if reference() is not None], f"BACK-7: {function} keeps an argument"


@pytest.mark.clause("BACK-3", "BACK-7")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_are_read_however_they_lie_in_memory(backend, layout):
    """By every function, and what belongs to none of the numbers is not written to either."""
    repeat: dict[str, Any] = REPEATED if layout == "repeated" else {}
    calls = calls_of(backend, case_of(), **repeat)
    if layout == "repeated":
        logits, square = calls[1].arrays
        two = (2, *logits.shape)
        batches = (np.broadcast_to(logits, two), np.broadcast_to(square, two))
        calls += [Call("sinkhorn_projection", (batches[0], K)), Call("sinkhorn_projection_vjp", (*batches, K))]
    for call in calls:
        laid = call.with_arrays(LAYOUTS[layout])
        plain = call.with_arrays(np.array)
        before = [layout_of(array) for array in laid.arrays]
        result = laid(backend)
        assert_same_up_to_rounding(backend, result, plain(backend), plain)
        assert_owned(laid, result)
        assert [layout_of(array) for array in laid.arrays] == before, f"BACK-7: {call.function}"


@pytest.mark.clause("BACK-3", "BACK-7")
@pytest.mark.parametrize("views", ["one", "two", "overlapping"])
def test_arguments_may_share_memory_with_each_other(backend, views):
    """x and its cotangent, or S and that of M: one array, two views of one, or views that overlap in part."""
    pairs = {"sinkhorn_projection_vjp": (0, 1), "adapter_vjp": (0, 4), "adapter_autodiff": (0, 4)}
    for call in calls_of(backend, case_of()):
        if call.function not in pairs:
            continue
        first, second = pairs[call.function]
        array = call.arguments[first]
        memory = np.concatenate([array, 2 * array[:1]])
        arguments = list(call.arguments)
        arguments[first], arguments[second] = {
            "one": (array, array),
            "two": (array, array[:]),
            "overlapping": (memory[:-1], memory[1:]),
        }[views]
        together = Call(call.function, tuple(arguments))
        apart = together.with_arrays(np.array)
        before = layout_of(memory), layout_of(array)
        assert_same_up_to_rounding(backend, together(backend), apart(backend), apart)
        assert (layout_of(memory), layout_of(array)) == before, f"BACK-7: {call.function}"


def assert_same_up_to_rounding(backend: Any, actual: Any, expected: Any, call: Call) -> None:
    """A library may sum in the order of memory, and x^T x in another order than x^T y. Files are equal to the bit."""
    if call.function.endswith("_state"):
        assert bits_of(actual) == bits_of(expected), f"BACK-3: {call.function}"
        return
    case, upstream, dtype = case_of(), call.arguments[-2], backend.parameter_dtype
    x, condition = call.arguments[0].astype(np.float64), case.logits.condition
    of_x = x_dtype if (x_dtype := call.arguments[0].dtype.name) in HALF else dtype
    rows: list[tuple[tuple[str, Any, str], Any]]
    if call.function == "sinkhorn_projection":
        rows = [(("sinkhorn_projection", dtype, "forward"), condition)]
    elif call.function == "sinkhorn_projection_vjp":
        rows = [(("sinkhorn_projection", dtype, "gradient"), condition * np.abs(upstream).max())]
    elif call.function == "adapter_forward":
        operation = "adapter y" if x_dtype in HALF else "adapter y - x"
        rows = [((operation, of_x, "forward"), condition * np.linalg.norm(x, axis=-1, keepdims=True))]
    else:
        scales = gradient_scales(case, x, upstream.astype(np.float64))
        rows = [((f"adapter {name}", of_x if name == "x" else dtype, "gradient"), scales[name]) for name in INPUTS]
    for (row, scale), part, other in zip(rows, parts_of(actual), parts_of(expected), strict=True):
        close = part.astype(np.float64), other.astype(np.float64)
        assert_within(*close, tolerance_for(*row), clause="BACK-3", scale=scale, context=call.function)


# -- results --


@pytest.mark.clause("BACK-8", "MIX-8")
@pytest.mark.parametrize("where", TEMPTING)
def test_a_result_shares_no_memory(backend, where):
    """With an argument, with another array of the same result, or with one of another call, be it the same call."""
    held: list[tuple[str, np.ndarray]] = []
    for call in (*tempting_calls(backend, where), *tempting_calls(backend, where), *other_calls(backend)) * 2:
        parts = parts_of(result := call(backend))
        assert_owned(call, result)
        for number, part in enumerate(parts):
            others = [(f"part {i} of the same result", other) for i, other in enumerate(parts[:number])]
            for name, other in (*others, *held):
                shared = part is other or part.base is other or np.shares_memory(part, other)
                assert not shared, f"BACK-8: {call.function}, part {number}, shares memory with {name}, {where}"
        held += [(f"part {i} of an earlier result of {call.function}", part) for i, part in enumerate(parts)]


@pytest.mark.clause("BACK-8")
@pytest.mark.parametrize("where", TEMPTING)
def test_a_result_stays_as_it_is(backend, where):
    """Whatever is called later: the same again, other values in the same shapes, other shapes, what is refused."""
    calls = tempting_calls(backend, where)
    held = [call(backend) for call in calls]
    before = [bits_of(result) for result in held]
    others = [with_other_values(call, 1) for call in calls]
    for call in (*calls, *others, *other_calls(backend), *other_calls(backend)):
        call(backend)
    if where == "nothing":
        try_refused(backend, refused_calls(backend))
    for call, result, bits in zip(calls, held, before, strict=True):
        assert bits_of(result) == bits, f"BACK-8: a result of {call.function} was changed by a later call, {where}"


@pytest.mark.clause("BACK-8", "BACK-9")
def test_what_is_written_to_a_result_stays_there(backend):
    """A result that is kept by the port is handed out as a copy."""
    calls = calls_of(backend, case_of())
    before = []
    for call in calls:
        result = call(backend)
        before.append(bits_of(result))
        for part in parts_of(result):
            if part.flags.writeable:
                part[...] = 7
    for call, bits in zip(calls, before, strict=True):
        assert bits_of(call(backend)) == bits, f"BACK-8: {call.function} returns what was written to a result"


# -- the same bits --


@pytest.mark.clause("BACK-9")
def test_the_same_arguments_give_the_same_bits_a_thousand_times(backend):
    """Of each function, with other values, shapes and refused calls in between. A slow port is asked less often."""
    kinds = [calls_of(backend, case_of()), calls_of(backend, case_of(seed=9)), calls_of(backend, case_of(11, n=1))]
    expected = [[bits_of(call(backend)) for call in calls] for calls in kinds]
    refused, started, computed = refused_calls(backend), time.monotonic(), time.process_time()
    state, open_before, number = process_state(), open_handles(), 0
    for number in range(CALLS):
        if number and (time.process_time() - computed > SECONDS or time.monotonic() - started > LONGEST):
            break
        which = (number % 7) % len(kinds)
        for call, bits in zip(kinds[which], expected[which], strict=True):
            assert bits_of(call(backend)) == bits, f"BACK-9: {call.function} gives other bits at call {number}"
        another = with_other_values(kinds[0][number % len(kinds[0])], number)
        assert bits_of(another(backend)) == bits_of(another(backend)), f"BACK-9: {another.function}, call {number}"
        if number % 50 == 3:
            try_refused(backend, refused)
    for calls, at_first in zip(kinds, expected, strict=True):
        assert [bits_of(call(backend)) for call in calls] == at_first, "BACK-9: other bits at the end"
    assert not changes(state, process_state()), "BACK-10"
    more = {kind: count - open_before[kind] for kind, count in open_handles().items()}
    assert number < LEAKS or max(more.values()) < LEAKS, f"BACK-10: after {number} calls of each function {more}"


def with_other_values(call: Call, number: int) -> Call:
    """Content that no call has had before, for a port that keeps some of its results and forgets others."""
    factor = 1 + (number + 1) / 4096
    return call.with_arrays(lambda array: array * array.dtype.type(factor))


@dataclass(frozen=True)
class Alike(Adapter):
    """The base case on a grid where sums are exact. Two entries in the middle of ``exchanged`` change places.

    A key made from the shape, the sum, the norm, the extremes, or the first and the last numbers is that of the base.
    """

    exchanged: str = ""

    def _of(self, name: str) -> np.ndarray:
        drawn = dict(zip(("x", "cotangent", "basis"), self._drawn, strict=True)) | {"values": self.logits.values}
        array = np.round(drawn[name] * 256) / 256
        if name == self.exchanged:
            flat = array.reshape(-1)
            middle = len(flat) // 2
            other = next(i for i in range(1, len(flat) - 1) if abs(flat[i] - flat[middle]) > 0.25)
            flat[[middle, other]] = flat[[other, middle]]
        return np.asarray(array, np.float32)

    x = property(lambda self: self._of("x"))
    cotangent = property(lambda self: self._of("cotangent"))
    basis = property(lambda self: self._of("basis"))
    mix_logits = property(lambda self: self._of("values"))


@pytest.mark.clause("BACK-9", "MIX-2", "GRAD-7")
@pytest.mark.parametrize("exchanged", ["x", "cotangent", "basis", "values", "gate"])
def test_what_a_port_keeps_is_found_by_all_of_its_content(backend, exchanged):
    """Two arguments of the same shape, sum, norm, extremes, first and last numbers are still two."""
    base = case_of()
    drawn = {name: getattr(base, name) for name in base.__dataclass_fields__}
    changed = Alike(**drawn | {"gate": 0.25}) if exchanged == "gate" else Alike(**drawn, exchanged=exchanged)
    for case in (Alike(**drawn), changed, Alike(**drawn)):
        assert_agrees(adapter_change(backend, case, K), ("adapter y - x", "forward"), backend, "BACK-9", case)
        for name, comparison in adapter_gradients(backend, case, K).items():
            assert_agrees(comparison, (f"adapter {name}", "gradient"), backend, "BACK-9", (name, case))
        values = case.mix_logits
        logits: Any = SimpleNamespace(values=values, condition=max(1.0, float(np.ptp(values))), memory="C")
        row = ("sinkhorn_projection", "forward")
        assert_agrees(projection(backend, logits, K), row, backend, "BACK-9", case)


@pytest.mark.clause("BACK-9", "SINK-2")
def test_what_a_port_keeps_is_found_by_k_too(backend):
    """The same arrays with another K give other results, whichever was asked for first."""
    many, one, again = (calls_of(backend, case_of(), iterations) for iterations in (K, 1, K))
    for calls in zip(many, one, again, strict=True):
        first, other, last = (bits_of(call(backend)) for call in calls)
        assert first == last, f"BACK-9: {calls[0].function}"
        assert first != other, f"BACK-9: {calls[0].function} gives the same for K = {K} and K = 1"


@pytest.mark.clause("BACK-9", "STATE-1")
def test_states_of_the_same_size_are_still_two(backend):
    """What is read or written is what this file or these arrays hold, and not those of the same sizes before."""
    for seed in (4, 9, 4):
        calls = {call.function: call for call in calls_of(backend, case_of(seed=seed)) if "state" in call.function}
        expected: Any = decode_state(calls["load_state"].arguments[0])
        for found, wanted in zip(calls["load_state"](backend)[:3], expected, strict=False):
            assert np.array_equal(np.asarray(found, np.float32), wanted), f"BACK-9: load_state, {seed}"
        if "save_state" in calls:
            written: Any = decode_state(calls["save_state"](backend))
            for array, given in zip(written, calls["save_state"].arrays, strict=False):
                assert np.array_equal(array, np.asarray(given, np.float32)), f"BACK-9: save_state, {seed}"


# -- the rest of the process --


@pytest.mark.clause("BACK-9", "BACK-10")
@pytest.mark.parametrize("usual", [True, False], ids=["usual", "unusual"])
@pytest.mark.parametrize("where", ["nothing", slow("five streams, two axes")])
def test_the_state_of_the_process_is_left_alone(backend, where, usual):
    """Of what :mod:`conformance.process_state` can see, whether a call returns or is refused."""
    calls, refused = [*tempting_calls(backend, where), *other_calls(backend)], refused_calls(backend)
    expected = [bits_of(call(backend)) for call in calls]  # what a port imports at its first call is its own affair
    try_refused(backend, refused)
    with surroundings(usual, 20261123 + usual):
        for call, bits in zip(calls, expected, strict=True):
            before = process_state()
            result = call(backend)
            assert not changes(before, process_state()), f"BACK-10: {call.function}"
            assert bits_of(result) == bits, f"BACK-9: {call.function}"
        for call in refused:
            before = process_state()
            try_refused(backend, [call])
            assert not changes(before, process_state()), f"BACK-10: {call.function}, which was to be refused"
    assert not arithmetic_faults(), "BACK-10"


@pytest.mark.clause("BACK-10")
@pytest.mark.parametrize("usual", [True, False], ids=["usual", "unusual"])
def test_settings_of_frameworks_are_left_alone(backend, usual):
    """A port may fail under settings that are not its own, but it does not put others in their place."""
    calls = calls_of(backend, case_of())
    for call in calls:
        call(backend)
    with framework_settings(usual):
        for call in calls:
            before = process_state()
            try_refused(backend, [call])
            assert not changes(before, process_state()), f"BACK-10: {call.function}"


@pytest.mark.clause("BACK-10")
@pytest.mark.parametrize("where", [slow("a process of its own")])
def test_the_first_calls_leave_the_process_alone(request, backend, where):
    """Settings that are put once, at the first call, are as those that are put at each."""
    found = first_changes(request.node.callspec.params["backend"])
    assert not found, f"BACK-10, in {where}: {'; '.join(found)}"


# -- threads --


@contextmanager
def eager_switching() -> Iterator[None]:
    """Threads change places as often as Python lets them."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


@pytest.mark.clause("BACK-11", "BACK-10")
def test_threads_get_the_bits_of_calls_one_after_another(backend):
    """Each has values of its own, of the same shapes as the others and of another one, and some that all share.

    They call one function, all at once and as often as time lets them, then the next one; and at last all of them.
    """
    if not getattr(backend, "thread_safe", True):
        pytest.skip("not offered: calls from several threads (thread_safe)")
    shared = calls_of(backend, case_of())
    work = [
        [*calls_of(backend, case_of(seed=20 + t)), *shared, *calls_of(backend, case_of(seed=40 + t, n=1))]
        for t in range(THREADS)
    ]
    expected = [[bits_of(call(backend)) for call in calls] for calls in work]
    layouts = [layout_of(array) for call in shared for array in call.arrays]
    faults: list[str] = []
    stopped: list[BaseException] = []
    barrier = threading.Barrier(THREADS)
    state = process_state()

    def ask(own: int) -> None:
        settings, rng = thread_state(), np.random.default_rng(own)
        for function in (*(call.function for call in shared), ""):
            chosen = [i for i, call in enumerate(work[own]) if function in ("", call.function)]
            barrier.wait()
            until = time.monotonic() + PHASE
            while not faults:
                results = [(i, work[own][i](backend)) for i in rng.permutation(chosen)]
                faults.extend(
                    f"BACK-11: {work[own][i].function} gives other bits in a thread"
                    for i, result in results
                    if bits_of(result) != expected[own][i]
                )
                if time.monotonic() > until:
                    break
            faults.extend(f"BACK-10, in a thread: {change}" for change in changes(settings, thread_state()))
            if faults:
                return

    def run(own: int) -> None:
        try:
            ask(own)
        except threading.BrokenBarrierError:
            return
        except BaseException as error:
            stopped.append(error)
        if faults or stopped:
            barrier.abort()  # nobody waits for a thread that has come to an end

    threads = [threading.Thread(target=run, args=(t,), daemon=True) for t in range(THREADS)]
    with eager_switching():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for error in stopped:
        raise error
    assert not faults, faults[0]
    assert [layout_of(array) for call in shared for array in call.arrays] == layouts, "BACK-7"
    assert not changes(state, process_state()), "BACK-10"


# -- numbers of 16 bits --


@pytest.mark.clause("BACK-12", "MIX-10")
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_every_number_of_16_bits_arrives_and_returns(backend, name):
    """Through a closed gate, where y is x: every exponent, and each bit of the mantissa.

    Not what is subnormal in float32, which not all arithmetic keeps.
    """
    require_x_dtype(backend, name)
    dtype = dtype_named(name)
    patterns = np.arange(0, 2**16, 37, dtype=np.uint16)
    every_bit = np.uint16(1) << np.arange(16, dtype=np.uint16)
    numbers = np.concatenate([patterns, every_bit, every_bit[:-1] | np.uint16(0x8000)]).view(dtype)
    with np.errstate(invalid="ignore"):  # NaN with other bits
        magnitude = np.abs(numbers.astype(np.float64))
    keeps = (magnitude == 0) | (magnitude >= 2.0**-126)
    numbers = numbers[keeps & (magnitude < 1e30)]  # finite, and their products with the basis in float32 as well
    _, logits, gate, basis = inputs_of(backend, case_of())
    d = basis.shape[-1]
    x = numbers[: len(numbers) // d * d].reshape(-1, d)
    forward = Call("adapter_forward", (x, logits, np.full_like(gate, -1e4), basis, K))
    y = forward(backend)
    assert_owned(forward, y)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    wrong = np.flatnonzero(np.asarray(y).view(np.uint16) != x.view(np.uint16))
    assert not [i for i in wrong if x.flat[i] != 0], f"BACK-12: {x.flat[wrong[0]]} came back as {y.flat[wrong[0]]}"
    backward = Call("adapter_vjp", (np.ones_like(x), logits, np.full_like(gate, -1e4), basis, x, K))
    gradients = backward(backend)
    assert_owned(backward, gradients)
    gradient = gradients.x
    assert gradient.dtype == x.dtype
    assert np.array_equal(gradient, x), "BACK-12: the cotangent of x"

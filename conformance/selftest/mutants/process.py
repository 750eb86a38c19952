"""Faults of what a call leaves behind in the process, of threads, and of bits that change with the calls before."""

import decimal
import gc
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from backends.interface import Gradients
from conformance.selftest.mutants.around import (
    FORWARD,
    FUNCTIONS,
    LOAD,
    PROJECT,
    SAVE,
    VJP,
    Around,
    Returns,
    arrays_of,
    each_array,
)
from conformance.selftest.mutants.base import ADAPTER, PROJECTION, STATE_FILE, Mutant
from conformance.selftest.port import Array, NumpyPort

_BOTH = (PROJECTION, ADAPTER, STATE_FILE)


class LeavesBehind(Around):
    """``trace`` is done in each call of some functions; or only in calls that are refused."""

    def __init__(
        self, trace: Callable[[], object], functions: tuple[str, ...] = FUNCTIONS, refused: bool = False
    ) -> None:
        super().__init__(functions)
        self.trace, self.refused = trace, refused

    def call(self, function: str, *arguments: Any) -> Any:
        try:
            result = super().call(function, *arguments)
        except Exception:
            self.trace()
            raise
        if not self.refused:
            self.trace()
        return result


class OneWorkspace(NumpyPort):
    """The log-matrix lies in memory of its shape that all calls share, whichever thread they come from."""

    def __init__(self) -> None:
        super().__init__()
        self.workspaces: dict[tuple[int, ...], Array] = {}

    def sinkhorn(self, logits: Array, iterations: int) -> tuple[list[Array], Array]:
        workspace = self.workspaces.setdefault(logits.shape, np.empty_like(logits))
        workspace[...] = logits
        return super().sinkhorn(workspace, iterations)


class OneSlot(Around):
    """The arguments of a function are kept in one place, checked, and read from there by what computes."""

    def call(self, function: str, *arguments: Any) -> Any:
        self.given = arguments
        if not all(np.isfinite(array).all() for array in arrays_of(arguments)):
            raise ValueError("not finite")
        return super().call(function, *self.given)


class OneStagingBuffer(Around):
    """Arguments are copied into memory of their shape before anything is computed from them."""

    def call(self, function: str, *arguments: Any) -> Any:
        def stage(number: int, argument: Any) -> Any:
            if not isinstance(argument, np.ndarray):
                return argument
            key = number, argument.shape, argument.dtype.str
            buffer = self.kept.setdefault(key, np.empty(argument.shape, argument.dtype))
            buffer[...] = argument
            return buffer

        return super().call(function, *(stage(number, a) for number, a in enumerate(arguments)))


class BufferOfAThread(Around):
    """Each thread has a buffer for its results: one thread's results are written over by its own next call."""

    def call(self, function: str, *arguments: Any) -> Any:
        result = super().call(function, *arguments)
        if not isinstance(result, np.ndarray):
            return result
        key = threading.get_ident(), function, result.shape, result.dtype.str
        buffer: Array = self.kept.setdefault(key, np.empty_like(result))
        np.copyto(buffer, result)
        return buffer


class OtherBits(Around):
    """Results of a function move by a rounding ``from_call`` on; with ``grows``, by one more in each later call."""

    def __init__(self, functions: tuple[str, ...], from_call: int, grows: bool = False) -> None:
        super().__init__(functions)
        self.from_call, self.grows, self.calls = from_call, grows, 0

    def call(self, function: str, *arguments: Any) -> Any:
        self.calls += 1
        steps = max(0, self.calls - self.from_call) if self.grows else int(self.calls > self.from_call)
        factor = 1 + steps * np.finfo(np.float32).eps
        return each_array(lambda a: (a * a.dtype.type(factor)).astype(a.dtype), super().call(function, *arguments))


class KeptBy(Around):
    """Results are kept, and found again by less than the content of the arguments: by ``key`` of them all."""

    def __init__(self, functions: tuple[str, ...], key: Callable[..., object]) -> None:
        super().__init__(functions)
        self.key = key

    def call(self, function: str, *arguments: Any) -> Any:
        key = self.key(*arguments)
        if key not in self.kept:
            self.kept[key] = super().call(function, *arguments)
        return each_array(np.array, self.kept[key])


def by(of_array: Callable[[Array], object], with_iterations: bool = True) -> Callable[..., object]:
    """For :class:`KeptBy`: shapes, dtypes, something ``of_array``, and K."""

    def key(*arguments: Any) -> object:
        arrays = tuple((a.shape, a.dtype.str, of_array(a)) for a in arrays_of(arguments))
        return arrays, arguments[-1] if with_iterations else 0

    return key


class EvictsTheWrongOne(Around):
    """A cache of 64 results by content; when it is full, the newest key is given the oldest result."""

    def call(self, function: str, *arguments: Any) -> Any:
        logits, iterations = arguments
        key = logits.shape, logits.dtype.str, logits.tobytes(), iterations
        if key not in self.kept:
            result = super().call(function, *arguments)
            same = [old for old in self.kept if old[0] == logits.shape]
            if len(self.kept) >= 64 and same:
                result = self.kept.pop(same[0])
            self.kept[key] = result
        return self.kept[key].copy()


def jittered(gradients: Gradients, *_: Any) -> Gradients:
    """The last bit is drawn from the global generator, whose state is then put back."""
    state = np.random.get_state()  # noqa: NPY002
    factor = 1 + np.random.randint(0, 3, gradients.basis.shape) * np.finfo(np.float32).eps  # noqa: NPY002
    np.random.set_state(state)  # noqa: NPY002
    return gradients._replace(basis=(gradients.basis * factor).astype(gradients.basis.dtype))


def ignore_errors_in_threads() -> None:
    """The first call in a thread other than the main one sets how NumPy treats errors there."""
    if threading.current_thread() is not threading.main_thread():
        np.seterr(all="ignore")


def of(framework: str, act: Callable[[Any], object]) -> Callable[[], object]:
    """What is done to a framework, which is imported for it."""
    return lambda: act(import_module(framework))


TRACES: dict[str, Callable[[], object]] = {
    "python_random_seeded": lambda: random.seed(0),
    "python_random_drawn_from": random.random,
    "numpy_random_seeded": lambda: np.random.seed(0),  # noqa: NPY002
    "numpy_random_drawn_from": lambda: np.random.random(),  # noqa: NPY002
    "warnings_are_ignored": lambda: warnings.simplefilter("ignore"),
    "numpy_errors_are_ignored": lambda: np.seterr(all="ignore"),
    "numpy_errors_are_put_back": lambda: np.seterr(divide="warn", over="warn", under="ignore", invalid="warn"),
    "numpy_prints_shorter": lambda: np.set_printoptions(precision=3),
    "environment_is_set": lambda: os.environ.update(MUTANT="was here"),
    "folder_is_changed": lambda: os.chdir("/"),
    "umask_is_set": lambda: os.umask(0),
    "collector_is_off": gc.disable,
    "collector_is_on": gc.enable,
    "recursion_limit_is_set": lambda: sys.setrecursionlimit(5000),
    "switch_interval_is_set": lambda: sys.setswitchinterval(0.01),
    "decimals_are_precise": lambda: setattr(decimal.getcontext(), "prec", 50),
    "interrupts_end_the_process": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    "output_is_replaced": lambda: setattr(sys, "stdout", sys.__stdout__),
    "loggers_are_silent": lambda: logging.root.setLevel(logging.ERROR),
    "modules_are_looked_for_elsewhere": lambda: sys.path.insert(0, "/mutant"),
}
OF_TORCH: dict[str, Callable[[], object]] = {
    "torch_is_seeded": of("torch", lambda torch: torch.manual_seed(0)),
    "torch_is_drawn_from": of("torch", lambda torch: torch.rand(1)),
    "torch_defaults_to_float64": of("torch", lambda torch: torch.set_default_dtype(torch.float64)),
    "torch_defaults_to_float32": of("torch", lambda torch: torch.set_default_dtype(torch.float32)),
    "torch_without_gradients": of("torch", lambda torch: torch.set_grad_enabled(False)),
    "torch_with_gradients": of("torch", lambda torch: torch.set_grad_enabled(True)),
    "torch_on_three_threads": of("torch", lambda torch: torch.set_num_threads(3)),
    "torch_multiplies_roughly": of("torch", lambda torch: torch.set_float32_matmul_precision("high")),
}
OF_JAX: dict[str, Callable[[], object]] = {
    "jax_in_64_bits": of("jax", lambda jax: jax.config.update("jax_enable_x64", True)),
}
OF_FRAMEWORKS = {**(OF_TORCH if find_spec("torch") else {}), **(OF_JAX if find_spec("jax") else {})}


def norm(array: Array) -> float:
    return float(np.square(array).sum())


def ends_of(array: Array) -> object:
    return array.reshape(-1)[[0, -1]].tobytes() if array.size else b""


_STATE = ("test_the_state_of_the_process_is_left_alone",)
_FRAMEWORKS = ("test_settings_of_frameworks_are_left_alone",)
_THREADS = ("test_threads_get_the_bits_of_calls_one_after_another",)
_THOUSAND = ("test_the_same_arguments_give_the_same_bits_a_thousand_times",)
_CONTENT = ("test_what_a_port_keeps_is_found_by_all_of_its_content",)
_STAYS = ("test_a_result_stays_as_it_is",)
_WITH_K = ("test_what_a_port_keeps_is_found_by_k_too",)
_SIZE = ("test_states_of_the_same_size_are_still_two",)
_IN_PLACE = ("test_an_array_changed_in_place_is_read_anew",)
MUTANTS = tuple(
    Mutant(name, partial(LeavesBehind, trace), _FRAMEWORKS if name in OF_FRAMEWORKS else _STATE, _BOTH)
    for name, trace in {**TRACES, **OF_FRAMEWORKS}.items()
) + tuple(
    Mutant(name, factory, caught_by, passes)
    for name, factory, caught_by, passes in (
        ("seeds_in_loading", partial(LeavesBehind, lambda: random.seed(0), LOAD), _STATE, _BOTH),
        ("seeds_in_saving", partial(LeavesBehind, lambda: random.seed(0), SAVE), _STATE, _BOTH),
        (
            "errors_ignored_by_a_refusal",
            partial(LeavesBehind, lambda: np.seterr(all="ignore"), refused=True),
            _STATE,
            _BOTH,
        ),
        ("one_workspace_for_all_threads", OneWorkspace, _THREADS, _BOTH),
        ("one_slot_for_all_threads", partial(OneSlot, PROJECT), _THREADS, _BOTH),
        ("one_slot_of_gradients", partial(OneSlot, VJP), _THREADS, _BOTH),
        ("one_staging_buffer", OneStagingBuffer, _THREADS, _BOTH),
        ("buffer_of_a_thread", BufferOfAThread, _STAYS, _BOTH),
        ("settings_of_the_thread", partial(LeavesBehind, ignore_errors_in_threads), _THREADS, _BOTH),
        ("other_bits_after_500_calls", partial(OtherBits, FORWARD, 500), _THOUSAND, _BOTH),
        ("other_gradients_after_500_calls", partial(OtherBits, VJP, 500), _THOUSAND, _BOTH),
        ("other_bits_from_the_second_call", partial(OtherBits, PROJECT, 1), _THOUSAND, (STATE_FILE,)),
        ("bits_that_wander", partial(OtherBits, VJP, 100, True), _THOUSAND, _BOTH),
        ("evicts_the_wrong_one", partial(EvictsTheWrongOne, PROJECT), _THOUSAND, (STATE_FILE,)),
        ("kept_by_shape", partial(KeptBy, FORWARD, by(lambda a: 0)), _CONTENT, (PROJECTION, STATE_FILE)),
        ("kept_by_sum", partial(KeptBy, FORWARD, by(lambda a: float(a.sum()))), _CONTENT, _BOTH),
        ("kept_by_both_ends", partial(KeptBy, VJP, by(ends_of)), _CONTENT, (PROJECTION, STATE_FILE)),
        ("kept_by_sorted_values", partial(KeptBy, VJP, by(lambda a: np.sort(a, axis=None).tobytes())), _CONTENT, _BOTH),
        ("m_kept_by_norm", partial(KeptBy, PROJECT, by(norm)), _CONTENT, (STATE_FILE,)),
        ("kept_without_k", partial(KeptBy, VJP, by(lambda a: a.tobytes(), False)), _WITH_K, (PROJECTION, STATE_FILE)),
        ("reads_the_first_of_a_size", partial(KeptBy, LOAD, len), _SIZE, (PROJECTION, ADAPTER)),
        ("depends_on_the_generator", partial(Returns, VJP, jittered), _STATE, _BOTH),
        ("kept_by_identity", partial(KeptBy, VJP, by(id)), _IN_PLACE, (STATE_FILE,)),
    )
)

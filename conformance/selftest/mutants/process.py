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
from importlib.util import find_spec
from typing import Any

import numpy as np

from conformance.selftest.mutants.around import Around, arrays_of, each_array
from conformance.selftest.mutants.base import ADAPTER, PROJECTION, STATE_FILE, Mutant
from conformance.selftest.port import Array, NumpyPort

_BOTH = (PROJECTION, ADAPTER, STATE_FILE)


class LeavesBehind(Around):
    """``trace`` is done in each call of the functions named, or of all; or only in calls that are refused."""

    def __init__(self, trace: Callable[[], object], function: str = "", refused: bool = False) -> None:
        super().__init__()
        self.trace, self.function, self.refused = trace, function, refused

    def call(self, function: str, *arguments: Any) -> Any:
        try:
            result = super().call(function, *arguments)
        except Exception:
            self.trace()
            raise
        if not self.refused and self.function in ("", function):
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

    def __init__(self, function: str) -> None:
        super().__init__()
        self.function = function

    def call(self, function: str, *arguments: Any) -> Any:
        if function != self.function:
            return super().call(function, *arguments)
        self.given = arguments
        if not all(np.isfinite(array).all() for array in arrays_of(arguments)):
            raise ValueError("not finite")
        return super().call(function, *self.given)


class OneStagingBuffer(Around):
    """Arguments are copied into memory of their shape before anything is computed from them."""

    def __init__(self) -> None:
        super().__init__()
        self.staged: dict[Any, Array] = {}

    def call(self, function: str, *arguments: Any) -> Any:
        def stage(number: int, argument: Any) -> Any:
            if not isinstance(argument, np.ndarray):
                return argument
            key = number, argument.shape, argument.dtype.str
            buffer = self.staged.setdefault(key, np.empty(argument.shape, argument.dtype))
            buffer[...] = argument
            return buffer

        return super().call(function, *(stage(number, a) for number, a in enumerate(arguments)))


class BufferOfAThread(Around):
    """Each thread has a buffer for its results: one thread's results are written over by its own next call."""

    def __init__(self) -> None:
        super().__init__()
        self.local = threading.local()

    def call(self, function: str, *arguments: Any) -> Any:
        buffers = self.local.__dict__.setdefault("buffers", {})

        def placed(array: Array) -> Array:
            buffer: Array = buffers.setdefault((function, array.shape, array.dtype.str), np.empty_like(array))
            np.copyto(buffer, array)
            return buffer

        result = super().call(function, *arguments)
        return placed(result) if isinstance(result, np.ndarray) else result


class SettingsOfTheThread(Around):
    """The first call in a thread other than the main one sets how NumPy treats errors there."""

    def call(self, function: str, *arguments: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            np.seterr(all="ignore")
        return super().call(function, *arguments)


class OtherBits(Around):
    """Results of a function move by a rounding ``from_call`` on; with ``grows``, by one more in each later call."""

    def __init__(self, function: str, from_call: int, grows: bool = False) -> None:
        super().__init__()
        self.function, self.from_call, self.grows, self.calls = function, from_call, grows, 0

    def call(self, function: str, *arguments: Any) -> Any:
        result = super().call(function, *arguments)
        if function != self.function:
            return result
        self.calls += 1
        steps = max(0, self.calls - self.from_call) if self.grows else int(self.calls > self.from_call)
        return each_array(lambda a: (a * a.dtype.type(1 + steps * np.finfo(np.float32).eps)).astype(a.dtype), result)


class KeptBy(Around):
    """Results are kept, and found again by less than the content of the arguments."""

    def __init__(self, function: str, key: Callable[[Array], object], with_iterations: bool = True) -> None:
        super().__init__()
        self.function, self.key, self.with_iterations = function, key, with_iterations
        self.kept: dict[Any, Any] = {}

    def call(self, function: str, *arguments: Any) -> Any:
        if function != self.function:
            return super().call(function, *arguments)
        last = arguments[-1] if self.with_iterations else 0
        key = tuple((a.shape, a.dtype.str, self.key(a)) for a in arrays_of(arguments)), last
        if key not in self.kept:
            self.kept[key] = super().call(function, *arguments)
        return each_array(np.array, self.kept[key])


class ReadsTheFirstOfASize(Around):
    """A file that is as long as one before is taken for it."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, Any] = {}

    def call(self, function: str, *arguments: Any) -> Any:
        if function != "load_state":
            return super().call(function, *arguments)
        result = super().call(function, *arguments)
        return each_array(np.array, self.kept.setdefault(len(arguments[0]), result))


class DependsOnTheGenerator(Around):
    """A jitter of the last bit is drawn from the global generator, whose state is then put back."""

    def call(self, function: str, *arguments: Any) -> Any:
        result = super().call(function, *arguments)
        if function != "adapter_vjp":
            return result
        state = np.random.get_state()  # noqa: NPY002
        factor = 1 + np.random.randint(0, 3, result.basis.shape) * np.finfo(np.float32).eps  # noqa: NPY002
        np.random.set_state(state)  # noqa: NPY002
        return result._replace(basis=(result.basis * factor).astype(result.basis.dtype))


class EvictsTheWrongOne(Around):
    """A cache of 64 results by content; when it is full, the newest key is given the oldest result."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[Any, Any] = {}

    def call(self, function: str, *arguments: Any) -> Any:
        if function != "sinkhorn_projection":
            return super().call(function, *arguments)
        logits = arguments[0]
        key = logits.shape, logits.dtype.str, logits.tobytes(), arguments[1]
        if key not in self.kept:
            result = super().call(function, *arguments)
            same = [old for old in self.kept if old[0] == logits.shape]
            if len(self.kept) >= 64 and same:
                result = self.kept.pop(same[0])
            self.kept[key] = result
        return self.kept[key].copy()


def set_environment() -> None:
    os.environ["MUTANT"] = "was here"


def replace_output() -> None:
    sys.stdout = sys.__stdout__


def ignore_errors() -> None:
    np.seterr(all="ignore")


def set_decimal() -> None:
    decimal.getcontext().prec = 50


def of_torch(act: Callable[[Any], object]) -> Callable[[], object]:
    def trace() -> object:
        import torch

        return act(torch)

    return trace


def enable_x64() -> None:
    import jax

    jax.config.update("jax_enable_x64", True)


TRACES: dict[str, Callable[[], object]] = {
    "python_random_seeded": lambda: random.seed(0),
    "python_random_drawn_from": random.random,
    "numpy_random_seeded": lambda: np.random.seed(0),  # noqa: NPY002
    "numpy_random_drawn_from": lambda: np.random.random(),  # noqa: NPY002
    "warnings_are_ignored": lambda: warnings.simplefilter("ignore"),
    "numpy_errors_are_ignored": ignore_errors,
    "numpy_errors_are_put_back": lambda: np.seterr(divide="warn", over="warn", under="ignore", invalid="warn"),
    "numpy_prints_shorter": lambda: np.set_printoptions(precision=3),
    "environment_is_set": set_environment,
    "folder_is_changed": lambda: os.chdir("/"),
    "umask_is_set": lambda: os.umask(0),
    "collector_is_off": gc.disable,
    "collector_is_on": gc.enable,
    "recursion_limit_is_set": lambda: sys.setrecursionlimit(5000),
    "switch_interval_is_set": lambda: sys.setswitchinterval(0.01),
    "decimals_are_precise": set_decimal,
    "interrupts_end_the_process": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    "output_is_replaced": replace_output,
    "loggers_are_silent": lambda: logging.root.setLevel(logging.ERROR),
    "modules_are_looked_for_elsewhere": lambda: sys.path.insert(0, "/mutant"),
}
OF_FRAMEWORKS: dict[str, Callable[[], object]] = {
    **(
        {
            "torch_is_seeded": of_torch(lambda torch: torch.manual_seed(0)),
            "torch_is_drawn_from": of_torch(lambda torch: torch.rand(1)),
            "torch_defaults_to_float64": of_torch(lambda torch: torch.set_default_dtype(torch.float64)),
            "torch_defaults_to_float32": of_torch(lambda torch: torch.set_default_dtype(torch.float32)),
            "torch_without_gradients": of_torch(lambda torch: torch.set_grad_enabled(False)),
            "torch_with_gradients": of_torch(lambda torch: torch.set_grad_enabled(True)),
            "torch_on_three_threads": of_torch(lambda torch: torch.set_num_threads(3)),
            "torch_multiplies_roughly": of_torch(lambda torch: torch.set_float32_matmul_precision("high")),
        }
        if find_spec("torch")
        else {}
    ),
    **({"jax_in_64_bits": enable_x64} if find_spec("jax") else {}),
}


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
_M_AND_Y = (PROJECTION, ADAPTER)
FORWARD, VJP = "adapter_forward", "adapter_vjp"
_TRACES: list[tuple[str, Callable[[], NumpyPort], tuple[str, ...], tuple[str, ...]]] = [
    (name, partial(LeavesBehind, trace), _FRAMEWORKS if name in OF_FRAMEWORKS else _STATE, _BOTH)
    for name, trace in {**TRACES, **OF_FRAMEWORKS}.items()
]
MUTANTS = tuple(Mutant(*trace) for trace in _TRACES) + tuple(
    Mutant(name, factory, caught_by, passes)
    for name, factory, caught_by, passes in (
        ("seeds_in_loading", partial(LeavesBehind, lambda: random.seed(0), "load_state"), _STATE, _BOTH),
        ("seeds_in_saving", partial(LeavesBehind, lambda: random.seed(0), "save_state"), _STATE, _BOTH),
        (
            "errors_ignored_by_a_refusal",
            partial(LeavesBehind, ignore_errors, "", True),
            _STATE,
            _BOTH,
        ),
        ("one_workspace_for_all_threads", OneWorkspace, _THREADS, _BOTH),
        ("one_slot_for_all_threads", partial(OneSlot, "sinkhorn_projection"), _THREADS, _BOTH),
        ("one_slot_of_gradients", partial(OneSlot, VJP), _THREADS, _BOTH),
        ("one_staging_buffer", OneStagingBuffer, _THREADS, _BOTH),
        ("buffer_of_a_thread", BufferOfAThread, _STAYS, _BOTH),
        ("settings_of_the_thread", SettingsOfTheThread, _THREADS, _BOTH),
        ("other_bits_after_500_calls", partial(OtherBits, FORWARD, 500), _THOUSAND, _BOTH),
        ("other_gradients_after_500_calls", partial(OtherBits, VJP, 500), _THOUSAND, _BOTH),
        ("other_bits_from_the_second_call", partial(OtherBits, "sinkhorn_projection", 1), _THOUSAND, (STATE_FILE,)),
        ("bits_that_wander", partial(OtherBits, VJP, 100, True), _THOUSAND, _BOTH),
        ("evicts_the_wrong_one", EvictsTheWrongOne, _THOUSAND, (STATE_FILE,)),
        ("kept_by_shape", partial(KeptBy, FORWARD, lambda a: 0), _CONTENT, (PROJECTION, STATE_FILE)),
        ("kept_by_sum", partial(KeptBy, FORWARD, lambda a: float(a.sum())), _CONTENT, _BOTH),
        ("kept_by_both_ends", partial(KeptBy, VJP, ends_of), _CONTENT, (PROJECTION, STATE_FILE)),
        ("kept_by_sorted_values", partial(KeptBy, VJP, lambda a: np.sort(a, axis=None).tobytes()), _CONTENT, _BOTH),
        (
            "m_kept_by_norm",
            partial(KeptBy, "sinkhorn_projection", norm),
            _CONTENT,
            (STATE_FILE,),
        ),
        ("kept_without_k", partial(KeptBy, VJP, lambda a: a.tobytes(), False), _WITH_K, (PROJECTION, STATE_FILE)),
        ("reads_the_first_of_a_size", ReadsTheFirstOfASize, ("test_states_of_the_same_size_are_still_two",), _M_AND_Y),
        ("depends_on_the_generator", DependsOnTheGenerator, _STATE, _BOTH),
        ("kept_by_identity", partial(KeptBy, VJP, id), ("test_an_array_changed_in_place_is_read_anew",), (STATE_FILE,)),
    )
)

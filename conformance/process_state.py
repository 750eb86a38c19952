"""What a call could change for the rest of the process, or for the thread that calls, as values to compare.

Clause: BACK-10.
"""

import builtins
import decimal
import faulthandler
import gc
import io
import locale
import logging
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np

State = dict[str, str]
SHOWN = 120  # characters
HOOKS = ("excepthook", "displayhook", "unraisablehook", "breakpointhook")
STREAMS = ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__")
USUAL_ERRORS = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
UNUSUAL_ERRORS = {"divide": "print", "over": "warn", "under": "print", "invalid": "print"}
ENVIRONMENT = dict(os.environ)  # without what a call has put there since
OF_JAX = {
    "jax_enable_x64": False,
    "jax_default_matmul_precision": None,
    "jax_numpy_dtype_promotion": "standard",
    "jax_debug_nans": False,
    "jax_disable_jit": False,
}
#: functions of torch without arguments, each of which reads a setting
OF_TORCH = (
    "get_default_dtype",
    "get_default_device",
    "get_num_threads",
    "get_num_interop_threads",
    "get_float32_matmul_precision",
    "get_deterministic_debug_mode",
    "is_warn_always_enabled",
)
OF_TORCH_IN_A_THREAD = ("is_grad_enabled", "is_inference_mode_enabled", "is_anomaly_enabled", "is_autocast_enabled")


def process_state() -> State:
    """Everything that this file knows of; frameworks only where they are loaded."""
    return {**_python(), **_system(), **_numpy(), **_torch(), **thread_state()}


def thread_state() -> State:
    """The settings that each thread has for itself."""
    context = decimal.getcontext()
    traps = [str(kind) for kind, on in context.traps.items() if on]
    return {
        "the decimal context": str((context.prec, context.rounding, context.Emin, context.Emax, context.clamp, traps)),
        "NumPy's error handling": str((np.geterr(), np.geterrcall(), np.getbufsize())),
        "NumPy's print options": str(np.get_printoptions()),
        "arithmetic": str((_rounding(), _subnormal())),
        **_torch_in_a_thread(),
        **_jax(),
    }


def changes(before: State, after: State) -> list[str]:
    """What differs; a framework that was loaded in between was not there to be changed.

    Long values are not shown: the environment may hold what is not for a report.
    """
    names = [name for name in before if name in after and before[name] != after[name]]
    return [
        name + (f": {before[name]} -> {after[name]}" if max(len(before[name]), len(after[name])) < SHOWN else "")
        for name in names
    ]


def open_handles() -> dict[str, int]:
    """How many threads, and, where the system says it, how many files the process has open."""
    folder = "/proc/self/fd"
    return {"threads": threading.active_count(), "open files": len(os.listdir(folder)) if os.path.isdir(folder) else 0}


def _python() -> State:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    return {
        "Python's random generator": str(hash(random.getstate())),
        "filters of warnings": str(warnings.filters),
        "how warnings are shown": str((warnings.showwarning, warnings.formatwarning)),
        "sys.path": str((sys.path, sys.meta_path, sys.path_hooks)),
        "sys.argv": str(sys.argv),
        "the standard streams": str([id(getattr(sys, name)) for name in STREAMS]),
        "hooks": str([getattr(sys, name) for name in HOOKS] + [threading.excepthook]),
        "tracing": str((sys.gettrace(), sys.getprofile(), faulthandler.is_enabled())),
        "the recursion limit": str(sys.getrecursionlimit()),
        "the switch interval": str(sys.getswitchinterval()),
        "the size of a thread's stack": str(threading.stack_size()),
        "the digits of an integer": str(sys.get_int_max_str_digits()),
        "whether bytecode is written": str(sys.dont_write_bytecode),
        "the garbage collector": str((gc.isenabled(), gc.get_threshold(), gc.get_debug(), gc.get_freeze_count())),
        "builtins": str({name: id(value) for name, value in vars(builtins).items() if name != "_"}),
        "the default time-out of sockets": str(socket.getdefaulttimeout()),
        "logging": str((logging.root.manager.disable, logging.raiseExceptions, logging.getLoggerClass())),
        **{
            f"logger {each.name}": str((each.level, each.handlers, each.disabled, each.propagate, each.filters))
            for each in loggers
            if isinstance(each, logging.Logger)
        },
    }


def _system() -> State:
    umask = os.umask(0o77)
    os.umask(umask)
    state = {
        "environment variables": str(sorted(os.environ.items())),
        "the current folder": os.getcwd(),
        "the umask": oct(umask),
        "the locale": locale.setlocale(locale.LC_ALL),
        "the time zone": str(time.tzname),
        "signal handlers": str({number: signal.getsignal(number) for number in signal.valid_signals()}),
        "open standard streams": str([_file(number) for number in range(3)]),
    }
    if sys.platform != "win32":
        import resource

        limits = [resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")]
        state["resource limits"] = str(limits)
        state["blocked signals"] = str(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
        state["timers"] = str([signal.getitimer(kind)[1] for kind in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL)])
    if sys.platform == "linux":
        state["the cores of the process"] = str(sorted(os.sched_getaffinity(0)))
    return state


def _file(number: int) -> object:
    try:
        status = os.fstat(number)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _numpy() -> State:
    kind, key, *rest = np.random.get_state()  # noqa: NPY002
    return {"NumPy's global random generator": str((kind, hash(np.asarray(key).tobytes()), rest))}


def _torch() -> State:
    torch = _loaded("torch")
    if torch is None:
        return {}
    state = {f"torch.{name}": str(getattr(torch, name)()) for name in OF_TORCH if hasattr(torch, name)}
    state["torch's random generator"] = str(hash(torch.get_rng_state().numpy().tobytes()))
    if torch.cuda.is_initialized():
        state["torch's random generators on GPUs"] = str(
            [hash(s.numpy().tobytes()) for s in torch.cuda.get_rng_state_all()]
        )
    cudnn = torch.backends.cudnn
    state["torch.backends"] = str((cudnn.enabled, cudnn.benchmark, cudnn.deterministic, torch.backends.mkldnn.enabled))
    return state


def _torch_in_a_thread() -> State:
    torch = _loaded("torch")
    return {f"torch.{name}": str(getattr(torch, name)()) for name in OF_TORCH_IN_A_THREAD if hasattr(torch, name)}


def _jax() -> State:
    """Of this thread where it has a value of its own, and otherwise of the process."""
    jax = _loaded("jax")
    if jax is None:
        return {}
    return {f"jax.config.{name}": str(getattr(jax.config, name, value)) for name, value in jax.config.values.items()}


def _loaded(name: str) -> Any:
    """A framework that is loaded to its end, or None."""
    module = sys.modules.get(name)
    return module if hasattr(module, {"torch": "get_rng_state", "jax": "config"}[name]) else None


def _rounding() -> list[float]:
    """Sums that lie between two numbers; other ways to round than to nearest give others."""
    half = 2.0**-53
    return [sum(pair) for pair in ((1.0, half), (-1.0, -half), (1.0, 1.5 * half), (-1.0, -1.5 * half))]


def _subnormal() -> list[float]:
    """A processor that flushes them gives zeros."""
    smallest = np.asarray([2.0**-1074, 2.0**-1030, 2.0**-1022])
    single = np.asarray([2.0**-149, 2.0**-130, 2.0**-126], np.float32)
    products = (smallest * 1.0, smallest[2:] * 0.5, single * np.float32(1.0))
    return [float(number) for product in products for number in product]


def arithmetic_faults() -> list[str]:
    """What this thread computes with otherwise than every program expects, since its start or by now."""
    following = float(np.nextafter(1.0, 2.0))
    rounds = _rounding() == [1.0, -1.0, following, -following]
    keeps = _subnormal() == [2.0**-1074, 2.0**-1030, 2.0**-1022, 2.0**-1023, 2.0**-149, 2.0**-130, 2.0**-126]
    return [*(() if rounds else ("sums are not rounded to nearest",)), *(() if keeps else ("subnormal numbers are 0",))]


@contextmanager
def surroundings(usual: bool, seed: int) -> Iterator[None]:
    """Settings that no call needs, until the end of the block: the usual ones, or others.

    Whoever sets one of them to a value, be it in every call and to the same, changes it in one of the two.
    """
    with ExitStack() as stack:
        for get, put, values in _settings():
            stack.callback(put, get())
            put(values[0] if usual else values[1])
        stack.enter_context(warnings.catch_warnings())
        if usual:
            warnings.simplefilter("default")
        else:
            warnings.filterwarnings("ignore", message=f"no warning says {seed}")
        folder = None if usual else stack.enter_context(tempfile.TemporaryDirectory(prefix="crma-conformance-"))
        if folder:
            stack.callback(os.chdir, os.getcwd())  # before the folder is removed
            os.chdir(folder)
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        if (torch := _loaded("torch")) is not None:
            stack.enter_context(torch.random.fork_rng())
            torch.manual_seed(seed)
        yield


@contextmanager
def framework_settings(usual: bool) -> Iterator[None]:
    """Settings of frameworks, under which a port may fail, but which it must leave as they are all the same."""
    with ExitStack() as stack:
        for get, put, values in (*_settings_of_torch(), *(_settings_of_jax() if usual else ())):
            stack.callback(put, get())
            put(values[0] if usual else values[1])
        if (torch := _loaded("torch")) is not None:
            stack.enter_context(torch.random.fork_rng())
            torch.manual_seed(20261127 + usual)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


#: what reads a setting, what puts it, its usual value and another one
Setting = tuple[Callable[[], Any], Callable[[Any], Any], tuple[Any, Any]]


def _settings() -> list[Setting]:
    settings: list[Setting] = [
        (gc.isenabled, lambda on: gc.enable() if on else gc.disable(), (True, False)),
        (gc.get_threshold, lambda counts: gc.set_threshold(*counts), ((700, 10, 10), (690, 11, 9))),
        (sys.getrecursionlimit, sys.setrecursionlimit, (3000, 3107)),
        (sys.getswitchinterval, sys.setswitchinterval, (0.005, 0.004)),
        (decimal.getcontext, decimal.setcontext, (decimal.Context(prec=28), decimal.Context(17, decimal.ROUND_UP))),
        (np.geterr, lambda kinds: np.seterr(**kinds), (USUAL_ERRORS, UNUSUAL_ERRORS)),
        (np.get_printoptions, lambda o: np.set_printoptions(**o), ({"precision": 8}, {"precision": 5})),
        (lambda: logging.root.level, logging.root.setLevel, (logging.WARNING, logging.CRITICAL - 1)),
        (lambda: sys.path, lambda path: setattr(sys, "path", path), (list(sys.path), [*sys.path, "/crma"])),
        (lambda: sys.stdout, lambda s: setattr(sys, "stdout", s), (_sink(), _sink())),
        (lambda: sys.stderr, lambda s: setattr(sys, "stderr", s), (_sink(), _sink())),
        (lambda: sys.excepthook, lambda h: setattr(sys, "excepthook", h), (sys.__excepthook__, lambda *_: None)),
        (lambda: dict(os.environ), _put_environment, (dict(os.environ), {**ENVIRONMENT, "CRMA_UNUSUAL": "1"})),
        (lambda: os.umask(0o77), os.umask, (0o22, 0o27)),
        (lambda: locale.setlocale(locale.LC_ALL), _put_locale, ("C", "C.UTF-8")),
    ]
    if threading.current_thread() is threading.main_thread():
        number, usual = signal.SIGINT, signal.default_int_handler
        settings.append((lambda: signal.getsignal(number), lambda h: signal.signal(number, h), (usual, _interrupt)))
    return settings


def _settings_of_torch() -> list[Setting]:
    torch = _loaded("torch")
    if torch is None:
        return []
    return [
        (torch.get_default_dtype, torch.set_default_dtype, (torch.float32, torch.float64)),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, ("highest", "medium")),
        (torch.get_num_threads, torch.set_num_threads, (1, 2)),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, (0, 1)),
        (torch.is_grad_enabled, torch._C._set_grad_enabled, (True, False)),
    ]


def _settings_of_jax() -> list[Setting]:
    """To their usual values alone: under others all programs are compiled again."""
    jax = _loaded("jax")
    if jax is None:
        return []

    def setting(name: str, value: Any) -> Setting:
        return partial(getattr, jax.config, name), partial(jax.config.update, name), (value, value)

    return [setting(name, value) for name, value in OF_JAX.items() if name in jax.config.values]


def _sink() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8")


def _put_environment(variables: dict[str, str]) -> None:
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    for name, value in variables.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _put_locale(name: str) -> None:
    with suppress(locale.Error):  # a system without it
        locale.setlocale(locale.LC_ALL, name)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt

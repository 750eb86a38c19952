"""With pytest-xdist: what the process sees to that runs no tests itself, but prints and gives the status.

Clauses: CONF-2, CONF-4, CONF-7.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import pytest

from backends import Backend, load_backend

LOADED = pytest.StashKey[dict[str, Backend]]()
SIGNATURES = pytest.StashKey[set[str]]()  # of the calls of this process, or, in the controller, of all
COLLECTED = pytest.StashKey[list[str]]()  # ids of this suite's tests, before any is left out; all workers have the same
USE = pytest.StashKey[list[str]]()  # errors of use that a worker has met
COUNTED = ("sinkhorn_projection", "sinkhorn_projection_vjp", "adapter_forward", "adapter_vjp")


def is_controller(config: pytest.Config) -> bool:
    """Whether this process hands the tests to workers."""
    processes = config.getoption("numprocesses", default=None) or config.getoption("tx", default=None)
    return bool(processes) and not hasattr(config, "workerinput")


class Controller:
    """Prints the lines of the backends, unites what the workers counted, and makes status 4 of their errors of use."""

    def __init__(self, config: pytest.Config, lines: Callable[[pytest.Config], list[str]]) -> None:
        self.config, self.lines = config, lines

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self) -> None:
        for line in self.lines(self.config):
            self._write(line)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        output = getattr(node, "workeroutput", {})
        self.config.stash[SIGNATURES].update(output.get("signatures", ()))
        self.config.stash[COLLECTED] = output.get("collected", [])
        if "use" in output:
            self.config.stash[USE].append(output["use"])

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str) -> None:
        self.config.stash[USE].append(
            f"conformance run: got an end of the process within {crashitem}; allowed: a run up to pytest's closing "
            "line. Try: look in the port for os._exit, a crash, or an exit in compiled code"
        )

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        met: list[str] = self.config.stash[USE]
        said = sorted(set(met))
        for line in said:
            self._write(f"\nERROR: {line}")
        if said:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR

    def _write(self, line: str) -> None:
        reporter: Any = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter:
            reporter.write_line(line)


def load_counted(config: pytest.Config, name: str) -> Backend:
    """``load_backend``, with each distinct set of argument shapes, dtypes and K noted, for which a port may compile."""
    backend = load_backend(name)
    for function in COUNTED:
        setattr(backend, function, _counting(name, getattr(backend, function), config.stash[SIGNATURES]))
    return backend


def _counting(backend: str, function: Callable[..., Any], seen: set[str]) -> Callable[..., Any]:
    @wraps(function)
    def counting(*arguments: Any, **named: Any) -> Any:
        given = [*arguments, *named.values()]
        arrays = [(value.shape, value.dtype.name) for value in given if isinstance(value, np.ndarray)]
        result = function(*arguments, **named)  # what is refused need not be compiled for
        seen.add(repr((backend, function.__name__, arrays, [value for value in given if type(value) is int])))
        return result

    return counting

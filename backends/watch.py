"""A call of a port in Python that does not come back is interrupted, and ends in one message.

Clauses: BACK-1, ERR-2.
"""

import ctypes
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from reference.errors import BackendError, PortStoppedError

TIMEOUT = "CRMA_PORT_TIMEOUT"  # seconds for one call
DEFAULT_TIMEOUT = 600.0  # a call may compile a program
POLL = 0.2
INTERRUPTS = 2
USAGE_ERROR = 4  # pytest's own, as for every port that stops


class Watch:
    """Makes calls, and interrupts the main thread, as Ctrl-C would, where one takes longer than it may.

    A wait that ignores two interrupts ends the process with one message and status 4. A call from another thread, and
    one that holds the interpreter's lock in compiled code, is not ended. Raises: BackendError for a time that is none.
    """

    def __init__(self, source: str) -> None:
        self.source, self.seconds = source, seconds_from(TIMEOUT, DEFAULT_TIMEOUT)
        self._name, self._until, self._interrupts = "", float("inf"), 0
        threading.Thread(target=_look, args=(weakref.ref(self),), daemon=True, name="crma-watch").start()

    def call(self, function: Callable[..., Any], name: str, *arguments: Any) -> Any:
        """The result. Raises: PortStoppedError after the time; what the function raises."""
        if threading.current_thread() is not threading.main_thread() or self._until != float("inf"):
            return function(*arguments)
        self._name, self._interrupts, self._until = name, 0, time.monotonic() + self.seconds
        try:
            return function(*arguments)
        except BaseException as error:  # whatever the port makes of the interrupt
            if self._interrupts:
                raise self._stopped() from error
            raise
        finally:
            self._until = float("inf")

    def look(self) -> None:
        if time.monotonic() <= self._until:
            return
        self._interrupts += 1
        self._until = time.monotonic() + self.seconds  # once more, if the port has taken it for something else
        main = threading.main_thread().ident or 0
        if self._interrupts > INTERRUPTS:
            os.write(2, f"\nERROR: {self._stopped()}\n".encode())
            os._exit(USAGE_ERROR)
        if os.name == "posix" and callable(signal.getsignal(signal.SIGINT)):
            signal.pthread_kill(main, signal.SIGINT)  # which ends a wait as well
        else:  # a shell that starts a program in the background lets it ignore the signal
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(main), ctypes.py_object(KeyboardInterrupt))

    def _stopped(self) -> PortStoppedError:
        return PortStoppedError(
            f"{self.source}, {self._name}",
            got=f"no result within {self.seconds:g} s",
            allowed="a call that comes back",
            remedy=f"call it by hand, and look where it waits; {TIMEOUT} sets the seconds it may take",
        )


def _look(watched: weakref.ref[Watch]) -> None:
    """In a thread of its own, which ends with the port."""
    while (watch := watched()) is not None:
        watch.look()
        del watch
        time.sleep(POLL)


def seconds_from(variable: str, default: float) -> float:
    """A time limit from the environment. Raises: BackendError for a time that is none."""
    text = os.environ.get(variable, "")
    try:
        seconds = float(text or default)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise BackendError(variable, got=repr(text), allowed="a number of seconds > 0 and < 1e6", remedy="unset it")
    return seconds

"""A run in a process of its own, so that a port which ends the process ends in one message and not in status 0.

Clauses: CONF-4, ERR-2.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

_FILE = "CRMA_CONFORMANCE_STATUS"  # where the process that runs the tests writes their status, when it has come to it
_USAGE_ERROR = 4  # pytest's own


def run_to_the_end(run: Callable[[], int]) -> int:
    """The status of ``run()``, called in a second process with the same command line, terminal and signals.

    The status counts as it was written down at the end of the run, not as the process left it: ``os._exit(0)``, or
    ``exit(0)`` in compiled code, within a port is one message and status 4. Clause: CONF-4.
    """
    file = os.environ.pop(_FILE, None)
    if file is not None:
        if sys.platform == "linux":  # whoever kills the first process means this one
            import ctypes

            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
        status = 1
        try:
            status = run()
        finally:  # an exception shows itself by its traceback
            sys.stdout.flush()  # what the port has told Python to do at its end may leave nothing to be printed
            Path(file).write_text(str(status), encoding="ascii")
        return status
    with tempfile.TemporaryDirectory(prefix="crma-conformance-") as folder:
        written = Path(folder) / "status"
        tests = subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env={**os.environ, _FILE: str(written)})
        on_terminal = sys.platform == "win32" or any(os.isatty(stream) for stream in range(3))
        signal.signal(signal.SIGINT, lambda *_: None if on_terminal else tests.send_signal(signal.SIGINT))
        signal.signal(signal.SIGTERM, lambda *_: tests.terminate())  # a terminal sends Ctrl-C to both by itself
        left = tests.wait()
        if written.is_file():
            return int(written.read_text(encoding="ascii"))
    if left in (-signal.SIGINT, -signal.SIGTERM):
        return 128 - left
    from reference.errors import PortStoppedError  # with NumPy, which this process needs for nothing else

    error = PortStoppedError(
        "conformance run",
        got=f"an end {f'by signal {-left}' if left < 0 else f'with status {left}'} before its last test was done",
        allowed="a run up to pytest's closing line",
        remedy="-v names the test; look in the port for os._exit, a crash, or an exit in compiled code",
    )
    print(f"\nERROR: {error}", file=sys.stderr)
    return _USAGE_ERROR

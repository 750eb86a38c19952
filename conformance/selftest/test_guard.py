"""``python -m conformance``: what ends the process, a port or a signal, is never status 0. Clauses: CONF-4, ERR-2."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from conformance.selftest.programs import ROOT, SUITE, assert_one_clear_error, has_ended, run

TEST = "test_residual_mixing.py::test_a_cycle_moves_stream_j_to_stream_i"
PORTS = """
import atexit, ctypes, os, time
from pathlib import Path
from conformance.selftest.port import NumpyPort

def port(call):
    return type("Port", (NumpyPort,), {"adapter_forward": lambda self, *_: call()})

exits = port(lambda: os._exit(0))
compiled = port(lambda: ctypes.CDLL(None).exit(0))
crash = port(lambda: ctypes.string_at(0))
replaced = port(lambda: os.execv("/bin/true", ["true"]))
waits = port(lambda: (Path("waiting").write_text(str(os.getpid())), time.sleep(60)))

def at_import():
    os._exit(0)

def late():
    atexit.register(os._exit, 0)
    return port(lambda: [1.0, 2.0, 4.0])()
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my_port.py").write_text(PORTS)
    return tmp_path


@pytest.mark.clause("CONF-4", "ERR-2")
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("exits", "with status 0"),
        ("compiled", "with status 0"),
        ("replaced", "with status 0"),
        ("at_import", "with status 0"),
        ("crash", "by signal 11"),
    ],
)
def test_a_port_that_ends_the_process_is_one_clear_error(folder, name, part):
    assert_one_clear_error(run(folder, *SUITE, TEST, f"--backend=my_port:{name}"), "conformance run", part)


@pytest.mark.clause("CONF-4")
def test_what_a_port_does_after_the_run_changes_no_status(folder):
    done = run(folder, *SUITE, TEST, "--backend=my_port:late")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed" in done.stdout


def wait_for(path: Path) -> int:
    for _ in range(500):
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.02)
    raise AssertionError(f"no {path.name}")


def heed_interrupts() -> None:
    """A shell that starts the tests in the background has them ignore SIGINT, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.clause("CONF-4")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system has no /proc")
@pytest.mark.parametrize(
    ("sent", "status", "part"),
    [(signal.SIGINT, 2, "KeyboardInterrupt"), (signal.SIGTERM, 143, ""), (signal.SIGKILL, -9, "")],
)
def test_a_signal_ends_both_processes(folder, sent, status, part):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT), *sys.path])}
    command = [sys.executable, *SUITE, TEST, "--backend=my_port:waits"]
    streams: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, cwd=folder, env=environment, preexec_fn=heed_interrupts, **streams) as started:
        pid = wait_for(folder / "waiting")
        started.send_signal(sent)
        printed = started.communicate(timeout=60)[0].decode()
    assert started.returncode == status, printed
    assert part in printed
    assert has_ended(pid)


def on_a_terminal(folder: Path, *arguments: str, expect: str, typed: bytes) -> tuple[int, str]:
    """Status and output of a run on a terminal of its own, where ``typed`` is typed once ``expect`` is seen."""
    pid, terminal = pty.fork()
    if pid == 0:
        heed_interrupts()
        os.chdir(folder)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT), *sys.path])
        os.environ["TERM"] = "xterm"
        os.execv(sys.executable, [sys.executable, *SUITE, *arguments])
    printed = b""
    try:
        while chunk := os.read(terminal, 4096):
            printed += chunk
            if typed and expect.encode() in printed:
                os.write(terminal, typed)
                typed = b""
    except OSError:  # the end of a terminal
        pass
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), printed.decode()


@pytest.mark.clause("CONF-4")
def test_ctrl_c_on_a_terminal_is_one_interruption(folder):
    status, printed = on_a_terminal(folder, TEST, "--backend=my_port:waits", "-v", expect="stream_i[", typed=b"\x03")
    assert status == 2, printed
    assert printed.count("!!! KeyboardInterrupt !!!") == 1, printed
    assert "\x1b[" in printed, "no colours"


@pytest.mark.clause("CONF-4")
def test_the_debugger_has_the_terminal(folder):
    wrong = "--backend=conformance.selftest.mutants:transposed_mixing"
    typed = b"p 6 * 7000\nq\n"
    status, printed = on_a_terminal(folder, TEST, wrong, "--pdb", expect="(Pdb)", typed=typed)
    assert re.search(r"^42000", printed, re.MULTILINE), printed
    assert status == 2, printed

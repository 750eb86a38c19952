"""Processes: runs of the suite, programs that answer requests, and how one of them has to end."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from reference.errors import PortStoppedError

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent
PYTEST = ("-m", "pytest", "-p", "conformance.plugin", "-p", "no:cacheprovider")
SUITE = ("-m", "conformance", "-n", "0", "-p", "no:cacheprovider")  # one process, as pytest itself
#: a module of a port that ends the process
EXITS = """
import os
from conformance.selftest.port import NumpyPort

class Exits(NumpyPort):
    def adapter_vjp(self, *arguments):
        os._exit(0)
"""
PROGRAM = """
import json, os, signal, sys, time

def say(value):
    print(json.dumps(value), flush=True)

DESCRIPTION = {"name": "fake-cpu", "version": str(os.getpid()), "device": "cpu", "parameter_dtype": "float32"}
for line in sys.stdin:
    request = json.loads(line)
    number, function, arguments = request["id"], request["function"], request["arguments"]
    array = arguments.get("mix_logits")
    if function == "describe":
        say({"id": number, "result": DESCRIPTION})
        continue
    BODY
"""
ECHO = 'say({"id": number, "result": array})'
LOGITS = np.eye(3, dtype=np.float32)


def run(folder, *arguments, timeout=300, **environment):
    """``python ARGUMENTS`` in a folder, whose own modules are found, and those of this checkout."""
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def assert_one_clear_error(done, *parts):
    assert done.returncode == 4, done.stdout + done.stderr
    printed = done.stdout + done.stderr
    assert "Traceback" not in printed
    assert printed.count("allowed:") == 1, printed
    for part in ("Try:", *parts):
        assert part in printed


def has_ended(pid):
    """It may still be a zombie, whom somebody else has to reap."""
    for _ in range(200):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def is_gone(pid):
    """Ended and reaped: neither running nor a zombie."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def assert_stops(backend, *parts, call=None):
    """One error that holds the parts; then the program is gone, and every further call gives the same at once."""
    call = call or (lambda: backend.sinkhorn_projection(LOGITS, 3))
    with pytest.raises(PortStoppedError) as first:
        call()
    message = str(first.value)
    for part in (*parts, "allowed: one line of JSON", "Try:"):
        assert part in message
    assert len(message) < 1000
    assert is_gone(int(backend.version))
    before = time.monotonic()
    for further in (call, lambda: backend.load_state(b"")):
        with pytest.raises(PortStoppedError) as again:
            further()
        assert str(again.value) == message
    assert time.monotonic() - before < 0.5

"""Programs that answer requests, from the lines that a test is about, and how one of them has to end."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from reference.errors import PortStoppedError

ROOT = Path(__file__).resolve().parents[2]
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

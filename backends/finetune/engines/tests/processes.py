"""Commands under torchrun, in two processes on this machine (gloo, CPU)."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import psutil  # type: ignore[import-untyped]
import pytest

TIME_LIMIT = 240  # seconds; of a command that hangs
CLI = ("-m", "backends.finetune.cli")
REPOSITORY = Path(__file__).parents[4]


class Ended(NamedTuple):
    code: int
    output: str
    error: str


def start(arguments: list[str], program: tuple[str, ...] = CLI) -> subprocess.Popen[str]:
    """A torchrun of two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *program, *arguments], cwd=REPOSITORY, env=environment, **pipes)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """torchrun and the processes that it started."""
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def end(process: subprocess.Popen[str]) -> Ended:
    """Wait for a command, with a limit: what hangs is killed, and fails."""
    try:
        output, error = process.communicate(timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        for member in family(process):
            member.kill()
        output, error = process.communicate()
        pytest.fail(f"still running after {TIME_LIMIT} s:\n{output}\n{error}")
    return Ended(process.returncode, output, error)


def torchrun(arguments: list[str], program: tuple[str, ...] = CLI) -> Ended:
    return end(start(arguments, program))

"""The tests of the kernels run on the GPU if there is one, and in Triton's interpreter otherwise."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def kernels() -> ModuleType:
    pytest.importorskip("triton")
    from backends import load_backend

    load_backend("torch-triton")
    import backends.torch.kernels

    return backends.torch.kernels


@pytest.fixture(scope="session")
def device(kernels: ModuleType) -> str:
    return "cpu" if kernels.INTERPRETED else "cuda"


@pytest.fixture
def module(kernels: ModuleType) -> Callable[[str], Any]:
    """The modules of the kernels, of which the package shows the functions under the same names."""
    return lambda name: importlib.import_module(f"backends.torch.kernels.{name}")


def said(code: str, **environment: str) -> str:
    """What a fresh process says, and the last line of its errors."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr.strip().rpartition("\n")[2]

"""The tests of the kernels run on the GPU if there is one, and in Triton's interpreter otherwise."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from backends.torch.residual_mixing import residual_mixing as plain_mixing


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


def inputs(leading: tuple[int, ...], d: int, n: int, rank: int, device: str) -> list[torch.Tensor]:
    """x, M, alpha and A for residual mixing."""
    generator = torch.Generator().manual_seed(d)
    x = torch.randn(*leading, d, generator=generator)
    mixing = torch.rand(n, n, generator=generator).softmax(0)
    basis = torch.randn(n, rank, d, generator=generator) / d**0.5
    return [value.to(device) for value in (x, mixing, torch.tensor([0.3]), basis)]


def value_and_gradients(function: Callable[..., torch.Tensor], values: list[Any], cotangent: Any) -> list[Any]:
    leaves = [value.clone().requires_grad_() for value in values]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, cotangent.to(y.dtype))]


def random_cotangent(values: list[torch.Tensor]) -> torch.Tensor:
    """Half along y - x: the gradient for alpha, a single sum, then cannot cancel to nothing."""
    return torch.randn_like(values[0]) + (plain_mixing(*values) - values[0]).sign()


def said(code: str, **environment: str) -> str:
    """What a fresh process says, and the last line of its errors."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr.strip().rpartition("\n")[2]

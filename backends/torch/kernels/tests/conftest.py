"""The tests of the kernels run on the GPU if there is one, and in Triton's interpreter otherwise."""

from __future__ import annotations

from types import ModuleType

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

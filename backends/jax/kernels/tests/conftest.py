"""The tests of the kernels run in Pallas' interpreter, or on the GPU if there is one."""

import pytest


@pytest.fixture(autouse=True)
def _interpreter_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        monkeypatch.setenv("CRMA_PALLAS_INTERPRET", "1")

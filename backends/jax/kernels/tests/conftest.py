"""The tests of the kernels run in Pallas' interpreter, or on the GPU if there is one."""

from __future__ import annotations

import pytest

#: For tests of what is computed, not how fast: a fifth of the time to compile what the interpreter writes out.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


@pytest.fixture(autouse=True)
def _interpreter_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        monkeypatch.setenv("CRMA_PALLAS_INTERPRET", "1")

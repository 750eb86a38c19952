"""The kernels compile for GPUs without one at hand, in a process that does not interpret them.

It says that Triton's compiler and the assembler accept them, for three generations of GPUs, and what they take of its
shared memory and registers; nothing about their results or their speed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GENERATIONS = (80, 90, 100)
#: bytes of stack a thread that registers may spill to: with 64 streams, or n r = 512, they do
MOST_STACK = 512
CODE = """
import json, sys
from backends.torch.kernels.variants import compiled, variants
chosen = [each for each in variants() if not sys.argv[2:] or each.name in sys.argv[2:]]
print(json.dumps({each.name: (*compiled(each, int(sys.argv[1])), each.shared_limit) for each in chosen}))
"""


def compiled(generation: int, folder: Path, *names: str) -> dict[str, Any]:
    """Shared memory, registers, stack and the limit of shared memory of each variant, or of ``names``."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder)
    command = [sys.executable, "-W", "ignore", "-c", CODE, str(generation), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check(found: dict[str, Any]) -> None:
    for name, (shared, registers, stack, limit) in found.items():
        assert shared <= limit, name
        assert 0 < registers <= 255, name
        assert stack <= MOST_STACK, name


@pytest.mark.slow
@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_variant_compiles_without_a_gpu(generation: int, tmp_path: Path) -> None:
    found = compiled(generation, tmp_path)
    assert len(found) == 28 + 6 * 6 * 3 + 2 * 3 * 3
    check(found)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_what_a_model_runs_compiles_without_a_gpu(generation: int, tmp_path: Path) -> None:
    """Those of bfloat16 with four streams of four, and of the kinds that no test of a CPU compiles otherwise."""
    names = (
        "backward_kernel, fp32, n = 4",
        "token_kernel, x bf16, A fp32, n r = 16, WRITE=True",
        "token_kernel, x fp16, A fp32, n r = 16, WRITE=False",
        "gradient_kernel, x bf16, A fp32, n r = 16",
        "_mix_kernel, fp32, n = 16, P Q BASIS",
    )
    found = compiled(generation, tmp_path, *names)
    assert found.keys() == set(names)
    check(found)


def test_interpreted_kernels_are_not_compiled() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-W", "ignore", "-c", CODE, "90", "_mix_kernel, fp32, n = 16, P"]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode != 0
    assert "unset TRITON_INTERPRET" in done.stderr

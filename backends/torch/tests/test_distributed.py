"""Two processes train what one trains. DDP and FSDP2 over gloo on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from backends.torch import load_state
from backends.torch.tests._two_processes import build

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = Path(__file__).with_name("_two_processes.py")


def train(folder: Path, mode: str, processes: int) -> dict[str, torch.Tensor]:
    """Parameters of the adapters after three steps, from the state file that process 0 wrote."""
    file = folder / f"{mode}-{processes}.safetensors"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launcher, str(PROGRAM), mode, str(file)]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, env=environment, **pipes) as launched:
        try:
            output, errors = launched.communicate(timeout=300)
        finally:
            launched.terminate()  # the launcher ends its workers first, which are in sessions of their own
    assert launched.returncode == 0, output + errors[-4000:]
    said = json.loads(output.strip().splitlines()[-1])
    assert said["dtypes"] == ["torch.float32"]  # of the parameters as they are kept, and as they are computed with
    assert said["gradients"] is True
    return dict(load_state(file).state._asdict())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return train(tmp_path_factory.mktemp("alone"), "ddp", 1)


@pytest.mark.clause("MIX-10", "GRAD-7", "STATE-1")
@pytest.mark.parametrize("mode", ["ddp", "fsdp", pytest.param("fsdp-bfloat16", marks=pytest.mark.slow)])
def test_two_processes_give_the_parameters_of_one(tmp_path: Path, alone: dict[str, torch.Tensor], mode: str) -> None:
    together, start = train(tmp_path, mode, 2), build()[1].state()._asdict()
    # With a base model in bfloat16 the gradients themselves are rounded; Adam's steps have the size of the rate.
    rtol, atol = (0.0, 2e-2) if mode == "fsdp-bfloat16" else (1e-4, 1e-5)
    for name, value in alone.items():
        assert float((value - start[name]).abs().max()) > 5e-3, "nothing was learned"
        torch.testing.assert_close(together[name], value, rtol=rtol, atol=atol)

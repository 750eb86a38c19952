"""Two processes train what one trains. DDP and FSDP2 over gloo on the CPU.

Under torchrun this file is the program of each process: ``test_distributed.py MODE FILE``.
"""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from backends.torch import CRMABackbone, attach_crma, load_state, save_state
from backends.torch.conftest import tiny_model
from backends.torch.distributed import shard_adapters
from reference import AdapterConfig

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES, LENGTH, STEPS = 4, 12, 3


def build() -> tuple[Any, CRMABackbone]:
    """The same model in every process: a frozen random Llama with adapters that do something."""
    model = tiny_model("llama").train().requires_grad_(False)
    return model, attach_crma(model, AdapterConfig(32, 2, 2), gate_logit=0.0)


def main(mode: str, file: str) -> None:
    dist.init_process_group("gloo", timeout=timedelta(minutes=2))
    rank, processes = dist.get_rank(), dist.get_world_size()
    model, backbone = build()
    dtypes = {str(parameter.dtype) for parameter in backbone.parameters()}
    for adapter in backbone.adapters:
        adapter.register_forward_hook(lambda module, *_: dtypes.add(str(module.basis.dtype)))
    if mode.startswith("fsdp"):
        mesh = init_device_mesh("cpu", (processes,))
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if "bfloat16" in mode else None)
        shard_adapters(backbone, mesh=mesh)
        for block in model.model.layers:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        trained = model
    else:
        trained = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=1e-2, weight_decay=0.0)
    tokens = torch.randint(60, (STEPS, EXAMPLES, LENGTH), generator=torch.Generator().manual_seed(1))
    share = EXAMPLES // processes
    gradients = True
    for step in range(STEPS):
        batch = tokens[step, rank * share : (rank + 1) * share]
        trained(input_ids=batch, labels=batch).loss.backward()
        gradients &= all(parameter.grad is not None for parameter in backbone.parameters())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    state = backbone.state()  # every process takes part: what is sharded is gathered
    if rank == 0:
        save_state(file, state, backbone.config)
        print(json.dumps({"dtypes": sorted(dtypes), "gradients": gradients}))
    dist.barrier()
    sys.stdout.flush()
    # DDP's destructor joins gloo's thread while it holds the interpreter's lock, which that thread may be waiting for
    # (seen in torch 2.13: a process that never ends). So nothing is destroyed.
    os._exit(0)


def train(folder: Path, mode: str, processes: int) -> dict[str, torch.Tensor]:
    """Parameters of the adapters after three steps, from the state file that process 0 wrote."""
    file = folder / f"{mode}-{processes}.safetensors"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launcher, __file__, mode, str(file)]
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


if __name__ == "__main__":
    main(*sys.argv[1:])

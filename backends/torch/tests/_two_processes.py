"""The program that test_distributed.py starts with torchrun: ``_two_processes.py MODE FILE``."""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from backends.torch import CRMABackbone, attach_crma, save_state
from backends.torch.conftest import tiny_model
from backends.torch.distributed import shard_adapters
from reference import AdapterConfig

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


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Data parallelism under torchrun: every process reads its share of a batch, the adapters' gradients are summed.

What trains (LoRA and CRMA, a few million values) is whole in every process, and so is its optimizer: one all-reduce of
one buffer a step, with the loss normalized by the answer tokens of *all* processes. The frozen base model is
replicated, or, with ``shard``, spread over the processes block by block by FSDP2 (``fully_shard``), which leaves the
trainables alone. torch's DDP wrapper is not used: it would reduce after each backward pass, so once for every
accumulated batch, and it averages over processes whose numbers of answer tokens differ.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from backends.finetune.engines.world import SINGLE, World, world_size
from reference.errors import BackendError

#: within which every process has to say what it is about to work on; loading its files comes before
AGREE_SECONDS = 300


class TorchWorld(World):
    """The processes of a torchrun. Raises: BackendError if they cannot find each other."""

    def __init__(self, device: str) -> None:
        # Looked at first: an attempt of torch's that fails half-way leaves its count of groups wrong for good.
        needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", *(("LOCAL_RANK",) if device == "cuda" else ()))
        if missing := [name for name in needed if name not in os.environ]:
            raise BackendError(
                "torchrun",
                got=f"an environment without {', '.join(missing)}",
                allowed=f"all of {', '.join(needed)}, as torchrun sets them",
                remedy="start it with torchrun, or unset WORLD_SIZE for a single process",
            )
        try:
            self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            if device == "cuda":
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            if not dist.is_initialized():
                dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(minutes=30))
        except (RuntimeError, ValueError) as error:
            raise BackendError(
                "torchrun",
                got=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
                allowed="processes that can reach each other, on a GPU at most one each",
                remedy="start it with torchrun; check --nproc-per-node, --nnodes, --rdzv-endpoint and the network",
            ) from error

    def barrier(self) -> None:
        dist.barrier()

    def agree(self, parts: Mapping[str, str]) -> None:
        # A group of its own: only there can the time be limited, and gloo needs no GPU.
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=AGREE_SECONDS))
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, dict(parts), group=group)
        differing = {
            rank: names
            for rank, theirs in enumerate(found)
            if (names := sorted(name for name in {*found[0], *theirs} if theirs.get(name) != found[0].get(name)))
        }
        if differing:
            raise BackendError(
                "torchrun",
                got="; ".join(f"process {rank} with another {', '.join(names)}" for rank, names in differing.items())
                + " than process 0",
                allowed="one protocol, model, data and version of each package in all processes",
                remedy="give every process the same arguments, and every machine the same files and packages",
            )

    @contextmanager
    def joined(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not _has_lost_a_process(error):
                raise
            raise BackendError(
                f"torchrun, process {self.rank}",
                got="another process that has ended or does not answer",
                allowed="processes that all run to the end",
                remedy="see that process's own message; the same command with the same --out goes on from there",
            ) from error
        # Not after an error: the others may be waiting, and learn of it by this process's end.
        dist.destroy_process_group()


def _has_lost_a_process(error: RuntimeError) -> bool:
    """gloo raises a bare RuntimeError with its own file name, or that of its transport, in the message."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def torch_world(device: str) -> World:
    """The world that torchrun's environment names, or a single process."""
    return TorchWorld(device) if world_size() > 1 else SINGLE


def total(world: World, values: Sequence[float], device: torch.device) -> list[float]:
    """Each value summed over the processes, in float64."""
    if world.size == 1:
        return list(values)
    return summed(world, torch.tensor(values, dtype=torch.float64, device=device)).tolist()


def summed(world: World, tensor: Tensor) -> Tensor:
    """Summed over the processes, in place."""
    if world.size > 1:
        dist.all_reduce(tensor)
    return tensor


def sum_gradients(world: World, parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its sum over the processes."""
    if world.size == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    buffer = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(buffer)
    for gradient, summed in zip(gradients, buffer.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))


def share(world: World, count: int) -> list[tuple[int, bool]]:
    """Which of ``count`` items this process takes: (index, whether it counts).

    All processes take equally many, as a sharded model needs every one of them in each forward pass; the last ones may
    repeat an item, without counting it.
    """
    rounds = -(-count // world.size)
    indices = [world.rank + turn * world.size for turn in range(rounds)]
    return [(index, True) if index < count else (0, False) for index in indices]


def shard_base(model: Any, blocks: Sequence[nn.Module], trainables: set[nn.Parameter]) -> None:
    """Spread the frozen parameters over the processes, block by block; ``trainables`` stay whole (FSDP2)."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # By default the mesh is of the machine's accelerator, even if the model is on the CPU.
    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh, ignored_params=trainables & set(block.parameters()))
    fully_shard(model, mesh=mesh, ignored_params=trainables)

"""``crma finetune``: fine-tune a model through a sequence of tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from backends.finetune.cli.options import Backend, OwnTasks, Protocol, Settings, Size, Threads
from backends.finetune.methods.conditions import BUDGET_FORM, KNOWN


def finetune(
    protocol: Protocol,
    model: Annotated[str | None, Option(help="a local Hugging Face folder, or smollm2")] = None,
    backend: Backend = "torch-cpu",
    mesh: Annotated[
        str | None,
        Option(metavar="DATAxMODEL", help="JAX: rows of a batch over DATA devices, weights over MODEL"),
    ] = None,
    seeds: Annotated[list[int] | None, Option(metavar="SEED ...", help="instead of the protocol's")] = None,
    conditions: Annotated[
        list[str] | None,
        Option(metavar="CONDITION ...", help=f"{', '.join(KNOWN)}, {BUDGET_FORM}, modular@none"),
    ] = None,
    settings: Settings = None,
    task: OwnTasks = None,
    out: Annotated[
        Path | None, Option(help="run folder; an interrupted run goes on in it (default: runs/PROTOCOL)")
    ] = None,
    threads: Threads = None,
    random_weights: Annotated[
        Size | None,
        Option(help="instead of the model's weights, its architecture at full or reduced size; every output says so"),
    ] = None,
    shard: Annotated[
        bool, Option("--shard", help="PyTorch under torchrun: spread the base model over the processes (FSDP2)")
    ] = False,
    tensorboard: Annotated[bool, Option("--tensorboard", help="write RUN/tensorboard as well")] = False,
) -> None:
    """Fine-tune a model through a sequence of tasks."""
    from backends.finetune.tasks.task import parse_task_options
    from backends.finetune.training.finetune import finetune

    finetune(
        protocol,
        parse_task_options(task or []),
        model,
        out,
        seeds=seeds,
        conditions=conditions,
        settings=settings or [],
        backend=backend,
        mesh=mesh,
        shard=shard,
        threads=threads,
        random_weights=random_weights,
        tensorboard=tensorboard,
    )

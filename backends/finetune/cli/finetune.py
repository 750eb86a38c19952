"""``crma finetune``: fine-tune a model through a sequence of tasks."""

from pathlib import Path
from typing import Annotated

from backends.finetune.cli.options import TASK_FORM, Backend, ProtocolName, Settings, Size, Threads, option
from backends.finetune.methods.conditions import BUDGET_FORMS, KNOWN


def finetune(
    protocol: ProtocolName,
    model: Annotated[str | None, option(help="a local Hugging Face folder, or smollm2")] = None,
    backend: Backend = "torch-cpu",
    mesh: Annotated[
        str | None, option(metavar="DATAxMODEL", help="JAX: rows of a batch over DATA devices, weights over MODEL")
    ] = None,
    seeds: Annotated[list[int] | None, option(metavar="SEED...", help="instead of the protocol's")] = None,
    conditions: Annotated[
        list[str] | None,
        option(metavar="CONDITION...", help=f"{', '.join(KNOWN)}, {BUDGET_FORMS}"),
    ] = None,
    settings: Settings = None,
    task: Annotated[
        list[str] | None,
        option(
            metavar=TASK_FORM,
            help="a task of your own, once per task in order, instead of the protocol's; lines of"
            ' {"prompt": ..., "response": ...} or {"text": ...}',
        ),
    ] = None,
    out: Annotated[
        Path | None, option(help="run folder; an interrupted run goes on in it (default: runs/PROTOCOL)")
    ] = None,
    threads: Threads = None,
    random_weights: Annotated[
        Size | None,
        option(help="instead of the model's weights, its architecture at full or reduced size; every output says so"),
    ] = None,
    shard: Annotated[
        bool, option("--shard", help="PyTorch under torchrun: spread the base model over the processes (FSDP2)")
    ] = False,
    tensorboard: Annotated[bool, option("--tensorboard", help="write RUN/tensorboard as well")] = False,
) -> None:
    """Raises: as :func:`backends.finetune.training.finetune.finetune`."""
    from backends.finetune.tasks.task import parse_task_options
    from backends.finetune.training.finetune import finetune

    finetune(
        protocol,
        parse_task_options(task or []),
        model,
        out,
        seeds=seeds or None,
        conditions=conditions or None,
        settings=settings or [],
        backend=backend,
        mesh=mesh,
        shard=shard,
        threads=threads,
        random_weights=random_weights,
        tensorboard=tensorboard,
    )

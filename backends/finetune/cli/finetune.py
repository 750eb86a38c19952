"""``crma finetune``: fine-tune a model through a sequence of tasks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from backends.finetune.cli.plan import SETTINGS
from backends.finetune.methods.conditions import BUDGET_FORM, KNOWN


def add_parser(commands: Any) -> None:
    """Add ``finetune`` to the commands of ``crma``."""
    finetune = commands.add_parser("finetune", help="fine-tune a model through a sequence of tasks")
    finetune.add_argument("protocol", help="a protocol's name (see `crma protocols`) or a .toml file")
    finetune.add_argument("--model", help="a local Hugging Face folder, or smollm2")
    finetune.add_argument("--backend", default="torch-cpu", help="torch-cpu (default), torch-cuda, jax-cpu or jax-cuda")
    finetune.add_argument(
        "--mesh", metavar="DATAxMODEL", help="JAX: rows of a batch over DATA devices, weights over MODEL"
    )
    finetune.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="instead of the protocol's")
    finetune.add_argument(
        "--conditions",
        nargs="+",
        metavar="CONDITION",
        help=f"{', '.join(KNOWN)}, {BUDGET_FORM}, modular@none",
    )
    finetune.add_argument("--set", **SETTINGS)
    finetune.add_argument(
        "--task",
        action="append",
        metavar="NAME=TRAIN.jsonl:HOLDOUT.jsonl",
        help="a task of your own, once per task in order, instead of the protocol's; lines of"
        ' {"prompt": ..., "response": ...} or {"text": ...}',
    )
    finetune.add_argument(
        "--out", type=Path, help="run folder; an interrupted run goes on in it (default: runs/PROTOCOL)"
    )
    finetune.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    finetune.add_argument(
        "--random-weights",
        choices=("full", "reduced"),
        help="instead of the model's weights, its architecture at full or reduced size; every output says so",
    )
    finetune.add_argument(
        "--shard", action="store_true", help="PyTorch under torchrun: spread the base model over the processes (FSDP2)"
    )
    finetune.add_argument("--tensorboard", action="store_true", help="write RUN/tensorboard as well")
    finetune.set_defaults(run=finetune_command)


def finetune_command(options: argparse.Namespace) -> None:
    """Raises: as :func:`backends.finetune.training.finetune.finetune`."""
    from backends.finetune.tasks.task import parse_task_options
    from backends.finetune.training.finetune import finetune

    given = {name: value for name, value in vars(options).items() if name not in ("run", "task", "protocol")}
    finetune(options.protocol, parse_task_options(options.task or []), **given)

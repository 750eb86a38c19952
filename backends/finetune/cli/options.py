"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

Protocol = Annotated[str, Argument(help="a protocol's name (see `crma protocols`) or a .toml file", metavar="PROTOCOL")]
Run = Annotated[Path, Argument(help="run folder of `crma finetune`", metavar="RUN")]
Settings = Annotated[
    list[str] | None,
    Option(
        "--set",
        metavar="FIELD=VALUE",
        help="replace one field of the protocol, such as lora.rank=4 or quantization=none; may be given several times",
    ),
]
OwnTasks = Annotated[
    list[str] | None,
    Option(
        "--task",
        metavar="NAME=TRAIN.jsonl:HOLDOUT.jsonl",
        help="a task of your own, once per task in order, instead of the protocol's; lines of"
        ' {"prompt": ..., "response": ...} or {"text": ...}',
    ),
]
Backend = Annotated[str, Option(help="torch-cpu, torch-cuda, jax-cpu or jax-cuda")]
Seed = Annotated[int | None, Option(metavar="SEED", help="of the run (default: its first)")]
Threads = Annotated[int | None, Option(help="CPU threads (default: all cores)")]
Size = Literal["full", "reduced"]

#: options that take all values that follow them, as in --seeds 0 1 2
SEVERAL = ("--seeds", "--conditions")

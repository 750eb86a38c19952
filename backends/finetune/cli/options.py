"""What several commands take, and how a command reads its options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from reference.errors import ConfigError

option = partial(typer.Option, show_default=False)  # the help texts name the defaults that matter

ProtocolName = Annotated[str, typer.Argument(help="a protocol's name (see `crma protocols`) or a .toml file")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="run folder of `crma finetune`")]
Backend = Annotated[str, option(help="torch-cpu (default), torch-cuda, jax-cpu or jax-cuda")]
Threads = Annotated[int | None, option(help="CPU threads (default: all cores)")]
SeedOfRun = Annotated[int | None, option("--seed", help="of the run (default: its first)")]
Size = Literal["full", "reduced"]
Settings = Annotated[
    list[str] | None,
    option(
        "--set",
        metavar="FIELD=VALUE",
        help="replace one field of the protocol, such as lora.rank=4 or quantization=none; may be given several times",
    ),
]
TASK_FORM = "NAME=TRAIN.jsonl:HOLDOUT.jsonl"
#: Options that take all values up to the next option.
MANY = ("--seeds", "--conditions")


class Command(TyperCommand):
    """A command of which an option of MANY takes several values, and no value is another option or has a NUL."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options. Raises: ConfigError, typer.BadParameter."""
        for before, arg in zip(("", *args), args, strict=False):
            if "\0" in arg:  # no path and no name has it; libraries underneath end in a traceback at it
                raise ConfigError(
                    f"argument {before.lstrip('-')}" if before.startswith("--") else "argument",
                    got=repr(arg),
                    allowed="a text without NUL",
                    remedy="write it again",
                )
        rest = super().parse_args(ctx, list(_spread(args)))
        names = {name for parameter in self.params for name in parameter.opts if name.startswith("--")}
        for name, given in ctx.params.items():
            for value in given if isinstance(given, list) else [given]:
                if str(value) in names:
                    raise typer.BadParameter(f"expected a value, got {value}", ctx, param_hint=name)
        return rest


def _spread(args: Sequence[str]) -> Iterator[str]:
    """``--seeds 0 1`` as ``--seeds 0 --seeds 1``."""
    many = None
    for before, arg in zip(("", *args), args, strict=False):
        if arg.startswith("-"):
            many = arg if arg in MANY else None
        elif many is not None and before != many:
            yield many
        yield arg

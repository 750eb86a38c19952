"""What several commands take, and how a command reads its options."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from reference.errors import ConfigError

option = partial(typer.Option, show_default=False)  # the help texts name the defaults that matter

ProtocolName = Annotated[str, typer.Argument(help="a protocol's name (see `crma protocols`) or a .toml file")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="folder of `crma learn` or `crma finetune`")]
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
MANY = ("--seeds", "--conditions", "--columns")


class Command(TyperCommand):
    """A command of which the options MANY take several values; NUL, and an option in place of a value, are refused."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options; ``--seeds 0 1`` stands for ``--seeds 0 --seeds 1``. Raises: ConfigError, BadParameter."""
        names = [name for option in self.params if not getattr(option, "is_flag", False) for name in option.opts]
        spread, many = [], None
        for before, arg in zip(("", *args), args, strict=False):
            name = before if before.startswith("--") and before in names else ""
            if "\0" in arg:  # no path and no name has it; libraries underneath end in a traceback at it
                raise ConfigError(
                    f"argument {name}".rstrip(), got=repr(arg), allowed="a text without NUL", remedy="write it again"
                )
            if arg.startswith("--") and name:
                raise typer.BadParameter(f"expected one argument, got {arg}", ctx, param_hint=name)
            if arg.startswith("-"):
                many = arg if arg in MANY else None
            elif many is not None and before != many:
                spread.append(many)
            spread.append(arg)
        return super().parse_args(ctx, spread)

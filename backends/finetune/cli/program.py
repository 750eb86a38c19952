"""The command ``crma``. A user's mistake ends in one message and a non-zero exit code, never in a traceback."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from backends.files import printable
from backends.finetune.cli.certify import certify
from backends.finetune.cli.finetune import finetune
from backends.finetune.cli.generate import generate
from backends.finetune.cli.modules import MODULES, run_module
from backends.finetune.cli.options import SEVERAL
from backends.finetune.cli.plan import plan
from backends.finetune.cli.protocols import protocols
from backends.finetune.cli.report import report
from backends.finetune.cli.route import route
from backends.finetune.models.load_errors import LIMITS
from reference import SPEC_VERSION
from reference.errors import ConfigError, CRMAError, MissingPackageError

USAGE_ERROR, INTERRUPTED = 2, 130
COMMANDS = (finetune, report, protocols, plan, certify, route, generate)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    # The base model is a folder on this machine; the libraries underneath must not look for it anywhere else.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in MODULES:
        return run_module(given[0], given[1:])
    try:
        code = run(given)
    except CRMAError as error:
        return _refused(error)
    except ModuleNotFoundError as error:
        missing = MissingPackageError(
            "package",
            got=f"no package named {error.name}",
            allowed="an installation with the extra 'finetune'",
            remedy="pip install 'crma[finetune]'",
        )
        return _refused(missing)
    except (OSError, RuntimeError) as error:
        if any(limit in str(error) for limit in LIMITS):
            return _refused(
                f"this machine: got {error}; allowed: a few more threads and open files than there are now. Try: lower "
                "--threads or OMP_NUM_THREADS, end other programs, or raise the limits (ulimit -u for threads, ulimit "
                "-n for files, a container's limit of processes)"
            )
        if isinstance(error, RuntimeError):
            raise
        return _refused(f"{error}. Check the file, its permissions and the free disk space.")
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return _misused(error)  # an option that does not exist, or a value of another type
    if code == INTERRUPTED:
        print("crma: interrupted. Start the same command with the same --out to go on from there.", file=sys.stderr)
    return code


def run(arguments: Sequence[str]) -> int:
    """Run the command of ``arguments``; returns its exit code, that of an interruption included. Raises: its errors."""
    for argument in arguments:
        if "\0" in argument:  # no path and no name has it; libraries underneath end in a traceback at it
            raise ConfigError("argument", got=repr(argument), allowed="a text without NUL", remedy="write it again")
    return program()(list(spread(arguments)), prog_name="crma", standalone_mode=False) or 0


def program() -> typer.Typer:
    """All commands."""
    commands = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    commands.callback()(_options)
    for command in COMMANDS:
        commands.command(command.__name__)(command)
    for name, (_, words) in MODULES.items():  # for the list of commands; ``main`` runs them
        commands.command(name, help=words)(lambda: None)
    return commands


def _versions(wanted: bool) -> None:
    """This package's, the specification's, and those of the libraries that compute, where they are installed."""
    if not wanted:
        return
    found = []
    for package in ("crma", "torch", "jax", "transformers", "peft", "safetensors", "numpy"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} not installed")
    own, *libraries = found
    print(f"{own} (specification {SPEC_VERSION}; Python {platform.python_version()}; {', '.join(libraries)})")
    raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_versions, is_eager=True, help="Show the versions and exit.")
    ] = False,
) -> None:
    """CRMA: continual fine-tuning on a shared, bounded backbone."""


def spread(arguments: Sequence[str]) -> Iterator[str]:
    """Write ``--seeds 0 1`` as ``--seeds 0 --seeds 1``; a negative number is a value."""
    option, bare = "", False
    for argument in arguments:
        if argument.startswith("-") and not re.fullmatch(r"-\d+", argument):
            if bare:
                yield option
            option, bare = (argument, True) if argument in SEVERAL else ("", False)
            if not option:
                yield argument
        elif option:
            yield from (option, argument)
            bare = False
        else:
            yield argument
    if bare:
        yield option


def _refused(why: object) -> int:
    """One message: what it quotes from files or names steers no terminal, and begins no line of its own."""
    print("crma: " + printable(why, keep="\n").replace("\n", "\n  "), file=sys.stderr)
    return USAGE_ERROR


def _misused(error: Any) -> int:
    """As argparse says it: the usage of the command, where it is known, and what is wrong."""
    context = getattr(error, "ctx", None)
    usage, name = ("", "crma") if context is None else (f"{context.get_usage()}\n", context.command_path)
    print(f"{usage}{name}: error: {printable(error.format_message())}", file=sys.stderr)
    return USAGE_ERROR

"""The command ``crma``. A user's mistake ends in one message and a non-zero exit code, never in a traceback."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from backends.files import printable
from backends.finetune.cli.certify import add_parser as add_certify
from backends.finetune.cli.finetune import add_parser as add_finetune
from backends.finetune.cli.generate import add_parser as add_generate
from backends.finetune.cli.plan import add_parser as add_plan
from backends.finetune.cli.route import add_parser as add_route
from backends.finetune.models.load_errors import LIMITS
from reference import SPEC_VERSION
from reference.errors import ConfigError, CRMAError, MissingPackageError

USAGE_ERROR, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    # The base model is a folder on this machine; the libraries underneath must not look for it anywhere else.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["conformance"]:  # -P: what lies in the current folder does not hide the suite or its parts
        return subprocess.run([sys.executable, "-P", "-m", "conformance", *given[1:]], check=False).returncode
    options = _parser().parse_args(arguments)
    try:
        _refuse_nul(options)
        return options.run(options) or 0
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
    except KeyboardInterrupt:
        print("crma: interrupted. Start the same command with the same --out to go on from there.", file=sys.stderr)
        return INTERRUPTED


def _refuse_nul(options: argparse.Namespace) -> None:
    """No path and no name has the character NUL; libraries underneath end in a traceback at it."""
    for name, given in vars(options).items():
        for value in given if isinstance(given, list) else [given]:
            if isinstance(value, str | Path) and "\0" in str(value):
                raise ConfigError(
                    f"argument {name}", got=repr(str(value)), allowed="a text without NUL", remedy="write it again"
                )


def _refused(why: object) -> int:
    """One message: what it quotes from files or names steers no terminal, and begins no line of its own."""
    print("crma: " + printable(why, keep="\n").replace("\n", "\n  "), file=sys.stderr)
    return USAGE_ERROR


class _Parser(argparse.ArgumentParser):
    """A parser, and those of its commands, whose messages quote an argument so that it steers no terminal."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="crma", description="CRMA: continual fine-tuning on a shared, bounded backbone.")
    parser.add_argument("--version", action="version", version=_versions())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    add_finetune(commands)
    report = commands.add_parser("report", help="write table, pictures and HTML of a run folder again")
    report.add_argument("folder", type=Path)
    report.set_defaults(run=_report)

    commands.add_parser("conformance", help="test a port: python -m conformance, with its options", add_help=False)
    protocols = commands.add_parser("protocols", help="list the protocols")
    protocols.set_defaults(run=_protocols)

    for add_parser in (add_plan, add_certify, add_route, add_generate):
        add_parser(commands)
    return parser


def _versions() -> str:
    """This package's, the specification's, and those of the libraries that compute, where they are installed."""
    found = []
    for package in ("crma", "torch", "jax", "transformers", "peft", "safetensors", "numpy"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} not installed")
    own, *libraries = found
    return f"{own} (specification {SPEC_VERSION}; Python {platform.python_version()}; {', '.join(libraries)})"


def _report(options: argparse.Namespace) -> None:
    from backends.finetune.report.terminal import Terminal
    from backends.finetune.training.finetune import show_report

    show_report(options.folder, Terminal())


def _protocols(options: argparse.Namespace) -> None:
    from rich.padding import Padding

    from backends.finetune.protocols.protocol import load_protocol, protocols_folder
    from backends.finetune.report.terminal import Terminal

    console = Terminal(highlight=False)
    for path in sorted(protocols_folder().glob("*.toml")):
        protocol = load_protocol(path.stem)
        order = ", in every order" if protocol.orderings == "all" else ""
        console.print(path.stem, style="bold")
        for line in (
            protocol.description,
            f"{protocol.model}; {', '.join(protocol.tasks)}{order}; {protocol.train} examples each, {protocol.holdout}"
            f" held out; conditions {', '.join(protocol.conditions)}; seeds {', '.join(map(str, protocol.seeds))}",
            protocol.source and f"After: {protocol.source}.",
        ):
            if line:
                console.print(Padding(line, (0, 0, 0, 2)))
        console.print()
    console.print("--model takes another model of the paper's Table 2 by its Hugging Face id, or a local folder.")


if __name__ == "__main__":
    sys.exit(main())

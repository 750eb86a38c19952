"""The commands of ``crma``, one file each, and their help."""

import importlib.metadata
import platform
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, NoReturn

import typer

from backends.files import printable
from backends.finetune.cli.certify import certify
from backends.finetune.cli.chat import chat
from backends.finetune.cli.evaluate import evaluate
from backends.finetune.cli.export import export
from backends.finetune.cli.finetune import finetune
from backends.finetune.cli.forget import forget
from backends.finetune.cli.generate import generate
from backends.finetune.cli.learn import learn
from backends.finetune.cli.modules import MODULES, runner
from backends.finetune.cli.options import Command
from backends.finetune.cli.plan import plan
from backends.finetune.cli.protocols import protocols
from backends.finetune.cli.report import report
from backends.finetune.cli.route import route
from backends.finetune.cli.show import show
from backends.finetune.cli.status import status
from reference import SPEC_VERSION

COMMANDS: dict[Callable[..., object], str] = {
    learn: "teach an assistant one more task",
    status: "what an assistant has learned, and what became of it",
    chat: "a conversation with an assistant",
    export: "one task, for where Hugging Face models are used",
    show: "the tokens that a model is fed, and which of them it learns",
    forget: "take a task out of an assistant",
    evaluate: "benchmarks of lm-eval, of the bare model and with a task's adapters",
    finetune: "fine-tune a model through a sequence of tasks",
    report: "write table, pictures and HTML of a run folder again",
    protocols: "list the protocols",
    plan: "parameters, memory, time and disk of a run, before it starts",
    certify: "check every promised bound of a run again, from its files",
    route: "fit the router that `crma generate --route` uses",
    generate: "write text with the adapters of a run",
}
app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
for command, description in COMMANDS.items():
    app.command(cls=Command, help=description)(command)
EVERYTHING = {"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False}
for name, (_, description) in MODULES.items():
    app.command(name, help=description, add_help_option=False, context_settings=EVERYTHING)(runner(name))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code.

    Raises: what the command raises; SystemExit after a help text (0), or after the message on a wrong option (2).
    """
    program = typer.main.get_command(app)
    try:
        with program.make_context("crma", list(arguments)) as context:
            return program.invoke(context) or 0
    except typer.Exit as ended:
        raise SystemExit(ended.exit_code) from None
    except typer.TyperException as error:
        _misused(error)


def _misused(error: typer.TyperException) -> NoReturn:
    """One message, which quotes an argument so that it steers no terminal."""
    context = getattr(error, "ctx", None)
    if context is not None:
        print(context.get_usage(), file=sys.stderr)
    print(f"{context.command_path if context else 'crma'}: error: {printable(error.format_message())}", file=sys.stderr)
    raise SystemExit(error.exit_code)


def _print_versions(wanted: bool) -> None:
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


@app.callback(help="CRMA: continual fine-tuning on a shared, bounded backbone.")
def _crma(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_versions, is_eager=True, help="show program's version number and exit"
        ),
    ] = False,
) -> None:
    pass

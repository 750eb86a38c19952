"""``crma chat FOLDER``: a conversation with an assistant, or with the adapters of a run."""

import sys
from typing import Annotated, Literal

import typer

from backends.files import printable
from backends.finetune.cli.generate import empty_answer
from backends.finetune.cli.options import RunFolder, SeedOfRun, Threads, option
from reference.errors import CRMAError

HELP = "/task NAME: another task answers; /new: forget what was said; /quit, or the end of the input: leave"


def chat(
    folder: RunFolder,
    task: Annotated[str | None, option(metavar="NAME", help="whose adapter answers (default: the last task's)")] = None,
    system: Annotated[str | None, option(metavar="TEXT", help="the system turn before the first question")] = None,
    seed: SeedOfRun = None,
    condition: Annotated[str, option(help="of a run (default: modular)")] = "modular",
    model: Annotated[str | None, option(metavar="FOLDER", help="the base model, where it has moved")] = None,
    device: Annotated[Literal["cpu", "cuda"], option()] = "cpu",
    max_new_tokens: Annotated[int, option(metavar="N")] = 256,
    temperature: Annotated[float, option(help="0, the default, is greedy decoding")] = 0.0,
    threads: Threads = None,
) -> None:
    """Run the command. Raises: the errors of everything it calls, before the first question."""
    from backends import load_backend
    from backends.finetune.inference.registry import AdapterRegistry
    from backends.finetune.report.terminal import Terminal
    from backends.finetune.tasks.chat import Message
    from backends.finetune.training.threads import set_up_framework

    console = Terminal(soft_wrap=True, highlight=False)
    set_up_framework(f"torch-{device}", threads)
    load_backend(f"torch-{device}")
    resident = None if condition == "o-lora" else 2
    registry = AdapterRegistry.from_run(
        folder, seed=seed, condition=condition, device=device, model=model, resident=resident
    )
    answering = task or registry.names[-1]
    registry.use(answering)
    opening = [Message("system", system)] if system else []
    said = list(opening)
    console.print(f"{answering} answers. {HELP}")
    while (asked := _asked()) is not None:
        try:
            match asked.split(maxsplit=1):
                case []:
                    continue
                case ["/quit"]:
                    return
                case ["/new"]:
                    said = list(opening)
                    continue
                case ["/task", name]:
                    registry.use(name)
                    answering = name
                    console.print(f"{answering} answers.")
                    continue
            turns = [*said, Message("user", asked)]
            (answer,) = registry.generate(
                [turns], task=answering, max_new_tokens=max_new_tokens, temperature=temperature
            )
            print(printable(answer, keep="\n\t") if answer.strip() else empty_answer(registry))
            said = [*turns, Message("assistant", answer)] if answer.strip() else said
        except CRMAError as error:  # a question that is refused does not end the conversation
            print(f"crma: {printable(error)}", file=sys.stderr)


def _asked() -> str | None:
    """The next line; None at the end of the input."""
    try:
        return typer.prompt("you", prompt_suffix="> ", default="", show_default=False)
    except (typer.Abort, EOFError):
        return None

"""``crma status FOLDER``: what an assistant has learned, and what became of it."""

from pathlib import Path
from typing import Annotated

import typer

from backends.finetune.cli.options import option

AssistantPath = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="an assistant's folder, as `crma learn` makes it")
]


def status(
    folder: AssistantPath, task: Annotated[str | None, option(help="also show the sample answers of this task")] = None
) -> None:
    """Raises: RunFolderError."""
    from backends.finetune.learning.status import show_status, write_page
    from backends.finetune.report.terminal import Terminal
    from backends.finetune.runs.assistant_folder import AssistantFolder

    console = Terminal()
    assistant_folder = AssistantFolder(folder)
    show_status(assistant_folder, console, told_of=task)
    console.print(f"page: {write_page(assistant_folder)}", soft_wrap=True, highlight=False)

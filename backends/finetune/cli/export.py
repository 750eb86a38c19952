"""``crma export FOLDER --task NAME --to FOLDER``: one task, for where Hugging Face models are used."""

from pathlib import Path
from typing import Annotated

from backends.finetune.cli.options import option
from backends.finetune.cli.status import AssistantPath


def export(
    folder: AssistantPath,
    task: Annotated[str, option(metavar="NAME", help="the task")],
    to: Annotated[Path, option(metavar="FOLDER", help="a new folder")],
    merge: Annotated[bool, option("--merge", help="one model, the LoRA in its weights, the CRMA beside it")] = False,
    model: Annotated[str | None, option(metavar="FOLDER", help="the base model, where it has moved")] = None,
    push: Annotated[str | None, option(metavar="OWNER/NAME", help="upload it to the Hugging Face Hub as well")] = None,
) -> None:
    """Raises: as :func:`backends.finetune.learning.export.export`."""
    from backends.finetune.learning.export import export
    from backends.finetune.report.terminal import Terminal

    written = export(folder, task, to, merge=merge, model=model, push=push)
    Terminal().print(f"exported: {written}; its README.md says how to load it", soft_wrap=True, highlight=False)

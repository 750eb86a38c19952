"""``crma forget FOLDER --task NAME``: nothing answers for a task from now on, and its files are removed."""

from typing import Annotated

from backends.finetune.cli.options import option
from backends.finetune.cli.status import AssistantPath


def forget(
    folder: AssistantPath,
    task: Annotated[str, option(metavar="NAME", help="the task")],
    even_so: Annotated[
        bool,
        option("--even-so", help="also where LoRAs of other tasks started from its own, and keep a part of it"),
    ] = False,
) -> None:
    """Raises: as :func:`backends.finetune.learning.forget.forget`."""
    from backends.finetune.learning.forget import forget
    from backends.finetune.report.terminal import Terminal

    Terminal().print(forget(folder, task, even_so=even_so), soft_wrap=True, highlight=False)

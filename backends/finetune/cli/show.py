"""``crma show DATA --model FOLDER``: the tokens that a model is fed, and which of them it learns."""

from typing import Annotated

import typer

from backends.finetune.cli.learn import columns_of
from backends.finetune.cli.options import option


def show(
    data: Annotated[str, typer.Argument(metavar="DATA", help="as for `crma learn`")],
    model: Annotated[str, option(help="a local Hugging Face folder, or smollm2")],
    columns: Annotated[list[str] | None, option(metavar="FIELD=COLUMN...", help="as for `crma learn`")] = None,
    split: Annotated[str, option(help="of a dataset with several (default: train)")] = "train",
    template: Annotated[str, option(metavar="auto|none|FILE", help="as for `crma learn` (default: auto)")] = "auto",
    count: Annotated[int, option(metavar="N", help="examples (default: 3)")] = 3,
) -> None:
    """Raises: as :func:`backends.finetune.learning.show.shown_examples`."""
    from backends.finetune.learning.show import shown_examples
    from backends.finetune.models.resolve import resolve_model
    from backends.finetune.protocols.protocol import template_of
    from backends.finetune.report.terminal import Terminal

    console = Terminal()
    for text in shown_examples(
        data,
        resolve_model(model),
        columns=columns_of(columns or []),
        split=split,
        template=template_of(template),
        count=count,
        coloured=console.is_terminal,
    ):
        console.print(text, soft_wrap=not console.is_terminal, highlight=False)

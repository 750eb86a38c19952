"""The terminal: what is printed there is text, whoever wrote it, and steers nothing."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from backends.files import printable


class Terminal(Console):
    """A console on which "[red]" and ":smile:" in a name are these letters, and a control character is its escape.

    Names of tasks, models and conditions come from files that others wrote. What a program wants bold or red it says
    with :class:`rich.text.Text` or ``style=``; what rich itself writes to move the cursor passes.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False} | options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text, keep="\n"))

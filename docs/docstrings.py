"""Docstrings as the site shows them: what is written for a reader of the source, in the words of mkdocstrings."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^( *)>>> .*?(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
ROLE = re.compile(r":(?:func|class|meth|mod):`~?([^`]+)`")
PARAMETER = re.compile(r"(?<=[.;]) (\w+): ")


class Docstrings(griffe.Extension):
    """For mkdocstrings: examples (``>>> ...``) are blocks of code, roles are code, and each parameter has its line."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if not obj.docstring:
            return
        text = ROLE.sub(r"`\1`", EXAMPLE.sub(r"\1```pycon\n\g<0>\n\1```", obj.docstring.value))
        head, arguments, rest = text.partition("\nArgs:\n")
        own, gap, behind = rest.partition("\n\n")
        lines = [PARAMETER.sub(r"\n    \1: ", line) for line in own.splitlines()]
        obj.docstring.value = head + arguments + "\n".join(lines) + gap + behind

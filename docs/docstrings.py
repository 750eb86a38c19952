"""Docstrings as Markdown has them, for the site: examples, names and arguments.

Examples (``>>> ...``) become blocks of code, since a paragraph of Markdown would take them for a quotation. What stands
as ``:func:`name``` becomes the name. Arguments that share a line of a docstring become a line each.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^( *)>>> .*?(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
ROLE = re.compile(r":(?:class|func|meth|mod):`([^`]+)`")


class Docstrings(griffe.Extension):
    """For mkdocstrings."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if not obj.docstring or obj.is_alias:
            return
        text = ROLE.sub(r"`\1`", obj.docstring.value)
        if isinstance(obj, griffe.Class | griffe.Function):
            names = "|".join(re.escape(parameter.name) for parameter in obj.parameters)
            text = re.sub(rf"(?<=[.;]) +(?=(?:{names or 'no name'}): )", "\n    ", text)
        obj.docstring.value = EXAMPLE.sub(r"\1```pycon\n\g<0>\n\1```", text)

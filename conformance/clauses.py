"""The clauses of the specification, read from its text; and where clauses are tested and cited.

A clause is a paragraph of ``spec/*.md`` that begins with its id in bold, such as the one this module is about, and ends
with its source. Works in a checkout and from an installed wheel. Clauses: CONF-5.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import spec

#: groups that bind a port, and groups that bind this project's drivers and tools (spec/82-conformance.md)
PORT_GROUPS = ("SINK", "MIX", "GRAD", "ACC", "BACK", "STATE")
PROJECT_GROUPS = ("INIT", "CERT", "BUDGET", "DATA", "ERR", "CL", "CONF", "VEC")
SPEC = Path(spec.__file__).resolve().parent

_CLAUSE = re.compile(r"\*\*([A-Z]+-\d+)\*\*\s+(.*)", re.DOTALL)
_SOURCE = re.compile(r"\*Source:\s+(.*?)\*\s*$", re.DOTALL)
_CITATION = re.compile(rf"\b({'|'.join(PORT_GROUPS + PROJECT_GROUPS)})-(\d+)(?:\.\.(?:\1-)?(\d+))?")


class Clause(NamedTuple):
    """One requirement: id, text, source ("" if it names none), the file of spec/ it is in, whether it is withdrawn."""

    id: str
    text: str
    source: str
    file: str
    withdrawn: bool

    @property
    def group(self) -> str:
        return self.id.partition("-")[0]

    @property
    def title(self) -> str:
        """The first sentence, as plain text."""
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|[*`]", r"\1", " ".join(self.text.split()))
        return re.split(r"(?<=[^.])\.(?:\s|$)", plain, maxsplit=1)[0]


def parse_clauses(text: str, file: str) -> list[Clause]:
    """The clauses in the text of one file of the specification, duplicates included."""
    clauses = []
    for paragraph in re.split(r"\n\s*\n", text):
        found = _CLAUSE.match(paragraph.strip())
        if found:
            body = found[2].strip()
            source = _SOURCE.search(body)
            clauses.append(
                Clause(
                    found[1],
                    body[: source.start()].strip() if source else body,
                    " ".join(source[1].split()).rstrip(".") if source else "",
                    file,
                    body.startswith("*withdrawn*"),
                )
            )
    return clauses


def read_clauses(folder: Path = SPEC) -> list[Clause]:
    """All clauses of the specification, in the order of its files."""
    return [
        clause
        for path in sorted(folder.glob("[0-9]*.md"))
        for clause in parse_clauses(path.read_text(encoding="utf-8"), path.name)
    ]


@cache
def clause_titles() -> dict[str, str]:
    """Id -> first sentence in plain text, for the clauses that are in force."""
    return {clause.id: clause.title for clause in read_clauses() if not clause.withdrawn}


def cited(text: str) -> set[str]:
    """Ids that a text names; of a range such as 1 to 9 of one group, both ends."""
    ids = set()
    for group, first, last in _CITATION.findall(text):
        ids |= {f"{group}-{number}" for number in (first, last) if number}
    return ids


def marked_tests(source: str) -> dict[str, set[str]]:
    """Test name -> ids of its clause markers: on the function, on its class, on its parameters, or on the module."""
    tree = ast.parse(source)
    tests = dict(_marked(tree.body, _assigned(tree.body)))
    return {name: ids for name, ids in tests.items() if ids}


def _marked(body: list[ast.stmt], inherited: set[str]) -> Iterator[tuple[str, set[str]]]:
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            ids = inherited | _assigned(node.body) | _marker_ids(node.decorator_list)
            yield from ((f"{node.name}::{name}", found) for name, found in _marked(node.body, ids))
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
            yield node.name, inherited | _marker_ids(node.decorator_list)


def _assigned(body: list[ast.stmt]) -> set[str]:
    """Ids in ``pytestmark = ...``."""
    values = (
        node.value
        for node in body
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in node.targets)
    )
    return _marker_ids(list(values))


def _marker_ids(nodes: list[ast.expr]) -> set[str]:
    calls = (node for root in nodes for node in ast.walk(root) if isinstance(node, ast.Call))
    return {
        argument.value
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr == "clause"
        for argument in call.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    }


def clauses_of(item: pytest.Item) -> list[str]:
    """The ids in the markers of a test."""
    return [clause for marker in item.iter_markers("clause") for clause in marker.args]

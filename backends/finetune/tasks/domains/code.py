"""Code: functions of Python's standard library. A document is one source file."""

import ast
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

from backends.finetune.tasks.domains.candidates import Candidate, fits, question
from backends.finetune.tasks.domains.prose import flatten, sentences
from backends.finetune.tasks.domains.source_trees import Function, parse, source_files, walk_public

#: functions are written in shorter tokens than prose, and a whole one needs more room
LONGEST_CODE = 520
_SKIPPED = frozenset({"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "ensurepip", "__main__"})


def candidates() -> Iterator[Candidate]:
    """A documented function or method a time: its name and summary ask, its source without docstring answers."""
    for path, file in source_files(Path(sysconfig.get_path("stdlib")), _SKIPPED):
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if module.partition(".")[0] not in sys.stdlib_module_names:
            continue
        parsed = parse(file)
        for name, node in walk_public(parsed[0]) if parsed else ():
            if not isinstance(node, ast.ClassDef | ast.Module) and (summary := _summary(node)) is not None:
                kind = "method" if "." in name else "function"
                asked = f"How is the {kind} {name} of the Python module {module} written? {summary}".strip()
                source = _source_without_docstring(node, parsed[1] if parsed else [])
                if source and fits(example := question(asked, source), LONGEST_CODE):
                    yield Candidate(path, example)


def _summary(node: Function) -> str | None:
    docstring = ast.get_docstring(node)
    if docstring is None or len(node.body) < 2:
        return None
    first = sentences(flatten(docstring.split("\n\n")[0]))
    is_sentence = first and 15 <= len(first[0]) <= 160 and first[0][0].isupper() and first[0].endswith(".")
    return first[0] if is_sentence else None


def _source_without_docstring(node: Function, lines: list[str]) -> str:
    first, second = node.body[0], node.body[1]
    head = lines[node.lineno - 1 : first.lineno - 1]
    body = lines[(first.end_lineno or 0) : node.end_lineno]
    if not head or second.lineno == first.end_lineno:
        return ""
    while body and not body[0].strip():
        body = body[1:]
    text = textwrap.dedent("\n".join(head + body)).strip()
    is_trivial = len(body) < 2  # one line is mostly a call of something else
    return "" if is_trivial or '"""' in text or "'''" in text else text

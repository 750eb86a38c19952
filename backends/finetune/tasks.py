"""Tasks of a sequential run: prompts and responses, for training and held out. Source: ours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from reference.errors import TaskDataError

FIELDS = 'a JSON object with the two texts "prompt" and "response", or with the one text "text"'


@dataclass(frozen=True)
class Example:
    """One text; the loss counts ``response`` only. ``prompt`` may be empty: then all of it is plain text."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Task:
    """One step of the sequence: what is trained on, and what measures how much of it is kept.

    ``canaries``: examples whose response is recalled exactly or not at all, asked with the prompt alone.
    """

    name: str
    train: tuple[Example, ...]
    holdout: tuple[Example, ...]
    canaries: tuple[Example, ...] = ()


def fingerprint(task: Task) -> str:
    """SHA-256 of a task's name and texts, in order: equal exactly where the data are equal.

    A task without canaries has the fingerprint that it had before there were any.
    """
    parts = (task.train, task.holdout, task.canaries) if task.canaries else (task.train, task.holdout)
    sides = [[(example.prompt, example.response) for example in part] for part in parts]
    return hashlib.sha256(json.dumps([task.name, *sides]).encode()).hexdigest()


def read_examples(path: str | Path) -> tuple[Example, ...]:
    """Read a JSON Lines file: one ``{"prompt": ..., "response": ...}`` or ``{"text": ...}`` a line, UTF-8.

    A byte order mark at the start and blank lines at the end are let pass, since editors add both; a blank line
    between two examples is an error. ``{"text": t}`` becomes an example with an empty prompt and the response t.

    Raises:
        TaskDataError: names the file, the line (from 1) and the field.

    Clauses: ERR-1, ERR-2. Source: ours.
    """
    return tuple(example for _, example in _numbered_examples(Path(path)))


def parse_task_option(option: str) -> Task:
    """Build a task from ``name=train.jsonl:holdout.jsonl``. Only the last colon separates the two paths.

    Raises:
        TaskDataError: another form, a wrong line in a file, or an example that is in both files.

    Clauses: ERR-1, ERR-2. Source: ours.
    """
    name, equals, paths = option.partition("=")
    train_path, colon, holdout_path = paths.rpartition(":")
    if not (equals and colon and name.strip() and train_path.strip() and holdout_path.strip()):
        raise TaskDataError(
            "task",
            got=repr(option),
            allowed="NAME=TRAIN.jsonl:HOLDOUT.jsonl, none of the three empty",
            remedy="for example --task law=law/train.jsonl:law/holdout.jsonl",
        )
    files = Path(train_path.strip()), Path(holdout_path.strip())
    train, holdout = (_numbered_examples(file) for file in files)
    lines: dict[str, int] = {}
    for line, example in train:
        lines.setdefault(_whole_text(example), line)
    for line, example in holdout:
        if _whole_text(example) in lines:
            raise TaskDataError(
                f"{files[1]}, line {line}",
                got=f"the text of {files[0]}, line {lines[_whole_text(example)]}, which is trained on",
                allowed="a holdout text that is in no training line",
                remedy="remove one of the two lines: a text seen in training cannot measure what is kept",
            )
    return Task(name.strip(), tuple(example for _, example in train), tuple(example for _, example in holdout))


def check_task_names(names: Iterable[str]) -> None:
    """Raise TaskDataError where two tasks of one sequence have the same name."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise TaskDataError(
                "task names",
                got=f"{name!r} twice",
                allowed="a different name for every task of the sequence",
                remedy="rename one: each task gets an adapter and a column of results under its name",
            )
        seen.add(name)


def _whole_text(example: Example) -> str:
    return " ".join(f"{example.prompt} {example.response}".split())


def _numbered_examples(path: Path) -> list[tuple[int, Example]]:
    lines = _read_text(path).rstrip().split("\n")
    if lines == [""]:
        raise TaskDataError(
            str(path), got="an empty file", allowed=f"one example a line, each {FIELDS}", remedy="check the path"
        )
    return [(number, _example(line, f"{path}, line {number}")) for number, line in enumerate(lines, start=1)]


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise TaskDataError(
            str(path),
            got=error.strerror or type(error).__name__,
            allowed="a JSON Lines file that can be read",
            remedy="check the spelling; a relative path starts at the folder that the command runs in",
        ) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise TaskDataError(
            f"{path}, line {line}",
            got=f"byte 0x{error.object[error.start]:02x}, which is not UTF-8",
            allowed="text in UTF-8",
            remedy="save the file as UTF-8",
        ) from error


def _example(line: str, where: str) -> Example:
    if not line.strip():
        raise TaskDataError(where, got="a blank line", allowed=FIELDS, remedy="remove the line")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TaskDataError(
            where, got=f"no JSON ({error})", allowed=FIELDS, remedy="check quotes and braces; one object a line"
        ) from error
    if not isinstance(record, dict):
        raise TaskDataError(where, got=f"a JSON {_kind(record)}", allowed=FIELDS, remedy="write an object in braces")
    if set(record) not in ({"prompt", "response"}, {"text"}):
        fields = ", ".join(repr(field) for field in sorted(record)) or "none"
        raise TaskDataError(where, got=f"the fields {fields}", allowed=FIELDS, remedy="rename, add or remove fields")
    for field, value in record.items():
        _check_text(value, f"{where}, field '{field}'", may_be_empty=field == "prompt")
    return Example(record.get("prompt", ""), record["text"] if "text" in record else record["response"])


def _check_text(value: object, where: str, *, may_be_empty: bool) -> None:
    if not isinstance(value, str):
        raise TaskDataError(where, got=f"a JSON {_kind(value)}", allowed="a JSON string", remedy="put it in quotes")
    if not may_be_empty and not value.strip():
        raise TaskDataError(
            where, got=repr(value), allowed="a text that is not blank", remedy="remove the line: nothing to learn in it"
        )
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise TaskDataError(
            where, got="half of a surrogate pair", allowed="Unicode text", remedy="write the character itself"
        )


def _kind(value: object) -> str:
    names = {list: "array", dict: "object", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")

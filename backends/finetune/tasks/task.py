"""Tasks of a sequential run: prompts and responses, for training and held out."""

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from backends.finetune.tasks.chat import Message
from backends.finetune.tasks.data_files import read_rows
from backends.finetune.tasks.shapes import parts_of
from reference.errors import TaskDataError


@dataclass(frozen=True)
class Example:
    """One text; the loss counts ``response`` only. ``prompt`` may be empty: then all of it is plain text. With
    ``messages`` it is a conversation, of which the assistant's turns count, and has neither of the two.

    ``place``: where it was read, as "FILE, line 3"; no part of what it is.
    """

    prompt: str
    response: str
    place: str = field(default="", compare=False, repr=False)
    messages: tuple[Message, ...] = ()

    @property
    def conversation(self) -> tuple[Message, ...]:
        """The messages; or a prompt and its response, without white space around them; none for a plain text."""
        if self.messages or not self.prompt:
            return self.messages
        return Message("user", self.prompt.strip()), Message("assistant", self.response.strip())

    @property
    def text(self) -> str:
        """All that is said, one behind the other."""
        return "".join([self.prompt, self.response, *(message.content for message in self.messages)])

    @property
    def query(self) -> str:
        """What asks for it: the prompt, or what is said before the last answer; where nothing asks, all of the text."""
        asked = "\n".join(message.content for message in self.messages[:-1] if message.role == "user")
        return (asked or self.prompt).strip() or self.text.strip()


@dataclass(frozen=True)
class Task:
    """One step of the sequence: what is trained on, and what measures how much of it is kept.

    ``canaries``: examples whose response is recalled exactly or not at all, asked with the prompt alone.
    ``decision``: held out as well, to choose by; what is reported is measured on ``holdout``.
    """

    name: str
    train: tuple[Example, ...]
    holdout: tuple[Example, ...]
    canaries: tuple[Example, ...] = ()
    decision: tuple[Example, ...] = ()


def with_decision(task: Task, count: int) -> Task:
    """The last ``count`` of the holdout examples set apart to decide by. Raises: TaskDataError where none remain."""
    if count >= len(task.holdout):
        raise TaskDataError(
            f"holdout examples of {task.name}",
            got=f"{len(task.holdout)}, of which {count} are to decide by",
            allowed="more than those, since what is reported is measured on the others",
            remedy="hold out more examples, or lower decision in the protocol",
        )
    kept = len(task.holdout) - count
    return replace(task, holdout=task.holdout[:kept], decision=task.holdout[kept:])


def fingerprint(task: Task) -> str:
    """SHA-256 of a task's name and texts, in order: equal exactly where the data are equal.

    A task without canaries and decision split has the fingerprint that it had before there were any.
    """
    parts = [task.train, task.holdout]
    if task.canaries or task.decision:
        parts += [task.canaries, *([task.decision] if task.decision else [])]
    sides = [[(e.prompt, e.response, *((e.messages,) if e.messages else ())) for e in part] for part in parts]
    return hashlib.sha256(json.dumps([task.name, *sides]).encode()).hexdigest()


def example_of(row: Mapping[str, Any], where: str, columns: Mapping[str, str] | None = None) -> Example:
    """What a row of data becomes. Raises: TaskDataError, as :func:`backends.finetune.tasks.shapes.parts_of`."""
    parts = parts_of(row, where, columns)
    return Example(parts.prompt, parts.response, where, parts.messages)


def read_task(name: str, train: str | Path, holdout: str | Path) -> Task:
    """A task of one's own from two sources, each as :func:`backends.finetune.tasks.data_files.read_rows` reads it, in
    the shapes of :mod:`backends.finetune.tasks.shapes`.

    Raises: TaskDataError, naming the file, the row and the field that is wrong; MissingPackageError.
    """
    sides = (tuple(example_of(row, where) for where, row in read_rows(source)) for source in (train, holdout))
    return Task(name, *sides)


def parse_task_options(options: Sequence[str]) -> list[Task]:
    """The tasks of one sequence, each from ``name=train.jsonl:holdout.jsonl``. Only the last colon separates two paths.

    Raises:
        TaskDataError: another form, a wrong line in a file, a file that is named twice, or what :func:`check_tasks`
        refuses.

    Clauses: ERR-1, ERR-2.
    """
    parts = [_parts(option) for option in options]
    tasks = [read_task(*of_task) for of_task in parts]
    used: dict[str, str] = {}
    for name, *paths in parts:
        for side, path in zip(("training", "holdout"), paths, strict=True):
            use, file = f"the {side} file of {name}", os.path.realpath(path)
            if file in used:
                raise TaskDataError(
                    use,
                    got=f"{path}, which is {used[file]}",
                    allowed="a file of its own for each side of each task",
                    remedy="name another file",
                )
            used[file] = use
    check_tasks(tasks)
    return tasks


def parse_task_option(option: str) -> Task:
    """One task, as :func:`parse_task_options` reads it."""
    return parse_task_options([option])[0]


def _parts(option: str) -> tuple[str, str, str]:
    name, equals, paths = option.partition("=")
    train_path, colon, holdout_path = paths.rpartition(":")
    parts = name.strip(), train_path.strip(), holdout_path.strip()
    if not (equals and colon and all(parts)):
        raise TaskDataError(
            "task",
            got=repr(option),
            allowed="NAME=TRAIN.jsonl:HOLDOUT.jsonl, none of the three empty",
            remedy="for example --task law=law/train.jsonl:law/holdout.jsonl",
        )
    return parts


def check_tasks(tasks: Sequence[Task]) -> None:
    """See that the tasks of one sequence measure what they say: on texts that none of them trains on, each once.

    Texts are compared without regard to case, white space and forms of the same character. Two tasks may hold out the
    same text, and a task may train on a text twice; a canary is trained on by its own task, and by no other.

    Raises: TaskDataError, naming both places: two tasks of one name, a text that one task trains on and any holds
    out, a text that is held out twice in one task, a canary of one task that another trains on.

    Clauses: ERR-1, ERR-2.
    """
    check_task_names(task.name for task in tasks)
    trained: dict[str, dict[str, str]] = {}
    for task in tasks:
        for place, example in _placed(task, "train"):
            trained.setdefault(normal_text(example.text), {}).setdefault(task.name, place)
    for task in tasks:
        held_out: dict[str, str] = {}
        for place, example in (*_placed(task, "holdout"), *_placed(task, "decision")):
            text = normal_text(example.text)
            for where in trained.get(text, {}).values():
                raise _repeated(place, f"the text of {where}, which is trained on")
            if text in held_out:
                raise _repeated(place, f"the text of {held_out[text]}, which is held out already")
            held_out[text] = place
        for place, example in _placed(task, "canaries"):
            for name, where in trained.get(normal_text(example.text), {}).items():
                if name != task.name:
                    raise _repeated(place, f"the text of {where}, which another task trains on")


def _placed(task: Task, side: str) -> Iterator[tuple[str, Example]]:
    for number, example in enumerate(getattr(task, side), start=1):
        yield example.place or f"task {task.name}, {side}, example {number}", example


def normal_text(text: str) -> str:
    """A text without case, white space, invisible marks and forms of the same character."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"[\s\u00ad\u200b-\u200f\u2060\ufeff]+", "", text)


def _repeated(place: str, got: str) -> TaskDataError:
    return TaskDataError(
        place,
        got=got,
        allowed="a text that is in no training line of any task, and is held out once",
        remedy="remove one of the two: a text seen in training cannot measure what is kept, and one that is held out "
        "twice counts twice",
    )


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


def listed(places: Sequence[str], most: int = 20) -> str:
    """Places such as "a.jsonl, line 3" and "a.jsonl, line 7", as "a.jsonl, lines 3, 7"; ``most`` of each file."""
    files: dict[str, list[str]] = {}
    for place in places:
        file, _, line = place.rpartition(" ")
        files.setdefault(file, []).append(line)
    return "; ".join(
        f"{file}{'s' if len(lines) > 1 else ''} {', '.join(lines[:most])}"
        + (f" and {len(lines) - most} more" if len(lines) > most else "")
        for file, lines in files.items()
    )

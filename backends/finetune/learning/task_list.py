"""A list of tasks in a .toml file, taught one after the other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backends.files import TEXT_LIMIT, parse_toml
from backends.finetune.protocols.text_file import read_text
from reference.errors import TaskDataError

FIELDS = {"data": str, "name": str, "holdout": str, "columns": dict, "split": str, "settings": list}
_FORM = '[[task]] tables with data = "FILE", and perhaps name, holdout, columns = {prompt = "FIELD"}, split, settings'


def read_task_list(path: Path, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The arguments of :func:`backends.finetune.learning.learn.learn` for each task of a list. Files are named relative
    to the list.

    Args:
        given: what the command was told of a single task, which a list says itself.

    Raises: TaskDataError.
    """
    if said := [name for name, value in given.items() if value and (name, value) != ("split", "train")]:
        raise TaskDataError(
            f"--{said[0]}",
            got="an option beside a list of tasks",
            allowed="the field in the list",
            remedy="move it there",
        )
    try:
        content = parse_toml(read_text(path, TaskDataError, limit=TEXT_LIMIT))
    except TaskDataError:
        raise
    except ValueError as error:
        raise _wrong(path, str(error)) from error
    tasks = content.get("task")
    if not isinstance(tasks, list) or not tasks or content.keys() != {"task"}:
        raise _wrong(path, f"the fields {', '.join(content) or 'none'}")
    lessons = []
    for number, task in enumerate(tasks, start=1):
        if not isinstance(task, dict) or "data" not in task:
            raise _wrong(path, f"a task {number} without data")
        for name, value in task.items():
            if not isinstance(value, FIELDS.get(name, ())):
                raise _wrong(path, f"{name} = {value!r:.100} in task {number}")
        lesson = dict(task)
        for side in ("data", "holdout"):
            if side in lesson and (path.parent / lesson[side]).exists():
                lesson[side] = str(path.parent / lesson[side])
        lessons.append(lesson)
    return lessons


def _wrong(path: Path, got: str) -> TaskDataError:
    return TaskDataError(str(path), got=got, allowed=_FORM, remedy="correct the file")

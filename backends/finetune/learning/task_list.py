"""A list of tasks in a .toml file, taught one after the other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backends.files import TEXT_LIMIT, parse_toml
from backends.finetune.learning.lesson import Lesson
from backends.finetune.protocols.text_file import read_text
from backends.finetune.runs.assistant_folder import AssistantFolder
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
            inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            is_text = all(isinstance(each, str) for each in inner) and (name != "data" or value != "")
            if not (isinstance(value, FIELDS.get(name, ())) and is_text):
                raise _wrong(path, f"{name} = {value!r:.100} in task {number}")
        lesson = dict(task)
        for side in ("data", "holdout"):
            if side in lesson and (path.parent / lesson[side]).exists():
                lesson[side] = str(path.parent / lesson[side])
        lessons.append(lesson)
    return lessons


def yet_to_learn(lessons: list[dict[str, Any]], into: Path) -> list[dict[str, Any]]:
    """Those that the folder has not learned from data of the same name: a list that was stopped goes on with these."""
    folder = AssistantFolder(into)
    tasks = folder.read().tasks if folder.exists else {}
    known = {name: task.record.data["name"] for name, task in tasks.items()}
    named = [(Lesson(each["data"], each.get("name", "")).task, Path(each["data"]).name) for each in lessons]
    return [lesson for lesson, (name, data) in zip(lessons, named, strict=True) if known.get(name) != data]


def _wrong(path: Path, got: str) -> TaskDataError:
    return TaskDataError(str(path), got=got, allowed=_FORM, remedy="correct the file")

"""What tokenization leaves of the texts: how many are cut, and by how much; looked at before anything is trained."""

from collections.abc import Callable, Mapping, Sequence

from backends.finetune.runs.records import TextRecord
from backends.finetune.tasks.encoder import Encoder
from backends.finetune.tasks.encoding import EncodedExample
from backends.finetune.tasks.task import Task
from reference.errors import TaskDataError

SIDES = ("train", "holdout", "canaries", "decision")
Sides = dict[str, list[EncodedExample]]


def encode_tasks(tasks: Sequence[Task], encoder: Encoder) -> list[Sides]:
    """Every task's examples by side.

    Raises: TaskDataError that names every text of every task that cannot be used, among them a canary that is cut: its
    answer would be recalled to its last token without being whole (CL-7).
    """
    encoded: list[Sides] = []
    errors: list[TaskDataError] = []
    for task in tasks:
        encoded.append({})
        for side in SIDES:
            try:
                encoded[-1][side] = encoder.encode(getattr(task, side), f"{task.name}, {side}")
            except TaskDataError as error:
                errors.append(error)
        cut = sum(example.cut > 0 for example in encoded[-1].get("canaries", ()))
        if cut:
            errors.append(
                TaskDataError(
                    f"task {task.name}, canaries",
                    got=f"{cut} of {len(task.canaries)} cut at max_tokens",
                    allowed="whole canaries, since each is recalled to its end or not at all",
                    remedy="raise max_tokens in the protocol",
                )
            )
    if len(errors) > 1:
        raise TaskDataError(
            "tasks",
            got=" | ".join(f"{error.field}: {error.got}" for error in errors),
            allowed=errors[0].allowed,
            remedy=errors[0].remedy,
        )
    if errors:
        raise errors[0]
    return encoded


def count_texts(sides: Mapping[str, Sequence[EncodedExample]]) -> dict[str, TextRecord]:
    """What was cut of each side of a task that has any texts."""
    return {
        side: TextRecord(
            texts=len(examples),
            cut=sum(example.cut > 0 for example in examples),
            cut_tokens=sum(example.cut for example in examples),
            split=sum(example.split for example in examples),
        )
        for side, examples in sides.items()
        if examples
    }


def said_of(tasks: Mapping[str, Mapping[str, TextRecord]]) -> str:
    """What a reader has to know of the texts of these tasks, by name and side, in at most two sentences."""
    cut = _listed(tasks, lambda record: record.cut)
    split = _listed(tasks, lambda record: record.split)
    return " ".join(
        [
            *([f"Cut at max_tokens, and so without their end: {cut}."] if cut else []),
            *([f"Prompts that end within a token, which is split there: {split}."] if split else []),
        ]
    )


def _listed(tasks: Mapping[str, Mapping[str, TextRecord]], number: Callable[[TextRecord], int]) -> str:
    found = {
        task: [f"{number(record)} of {record.texts} {side}" for side, record in sides.items() if number(record)]
        for task, sides in tasks.items()
    }
    return "; ".join(f"{task} {', '.join(parts)}" for task, parts in found.items() if parts)

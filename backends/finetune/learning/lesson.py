"""What is taught, and how; and what of it makes no sense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from backends.finetune.methods.lwf import DISTILLED
from backends.finetune.methods.method import Condition
from backends.finetune.protocols.protocol import Protocol
from backends.finetune.runs.assistant_folder import Assistant, Taught
from reference.errors import ConfigError, TaskDataError

RECENT = 8  # earlier tasks that --check recent measures
Checks = Literal["all", "recent", "none"]
Start = Literal["fresh", "last", "nearest", "distilled"]


@dataclass(frozen=True)
class Lesson:
    """What is taught, and how.

    Attributes:
        data: a file, a folder or OWNER/NAME of a dataset. name: of the task; by default from the data's.
        holdout: a file of its own for what is reported. columns, split: see
            :func:`backends.finetune.learning.data.read_examples`. settings: FIELD=VALUE of a protocol.
        template: the chat template, "auto", "none" or a file. start: where its LoRA starts; "distilled" is
            "last", held near the answers of the last task's LoRA on the new texts. check: which earlier tasks
            are measured and may move. promise: the most, in percent, that any of them may lose. discard: whether a
            phase that was interrupted is given up.
    """

    data: str
    name: str = ""
    holdout: str | None = None
    columns: Mapping[str, str] | None = None
    split: str = "train"
    settings: Sequence[str] = ()
    template: str | None = None
    start: Start = "fresh"
    check: Checks = "all"
    promise: float | None = None
    discard: bool = False

    @property
    def task(self) -> str:
        """The name of the task."""
        return self.name or Path(self.data).name.partition(".")[0]

    def checked(self, assistant: Assistant) -> dict[str, Taught]:
        """The earlier tasks that are measured after the phase."""
        names = list(assistant.tasks)
        chosen = {"all": names, "recent": names[-RECENT:], "none": []}[self.check]
        return {name: assistant.tasks[name] for name in chosen}

    def condition(self, protocol: Protocol, assistant: Assistant | None) -> Condition:
        """How it is trained. Of what there is nothing yet to start from it is a fresh LoRA that is trained."""
        ratchet = protocol.condition("modular-ratchet")
        if assistant is None or not assistant.tasks:
            return ratchet
        return replace(ratchet, **DISTILLED) if self.start == "distilled" else replace(ratchet, start=self.start)


def check_lesson(lesson: Lesson, answers: int) -> None:
    """Raises: ConfigError, TaskDataError."""
    for option, value, allowed in (
        ("start", lesson.start, get_args(Start)),
        ("check", lesson.check, get_args(Checks)),
    ):
        if value not in allowed:
            raise ConfigError(f"--{option}", got=repr(value), allowed=", ".join(allowed), remedy="choose one of these")
    if not isinstance(answers, int) or not 0 <= answers <= 100:
        raise ConfigError("--answers", got=repr(answers), allowed="a number from 0 to 100", remedy="use 3")
    promise = lesson.promise
    is_number = isinstance(promise, (int, float)) and not isinstance(promise, bool)
    if promise is not None and not (is_number and 0 <= promise < float("inf")):
        raise ConfigError("--promise", got=promise, allowed="a number of percent >= 0", remedy="for example 1")
    settings = lesson.settings
    is_list = isinstance(settings, Sequence) and not isinstance(settings, str)
    if not is_list or not all(isinstance(setting, str) for setting in settings):
        raise ConfigError(
            "settings", got=repr(settings)[:200], allowed="a list of texts FIELD=VALUE", remedy='write ["epochs=4"]'
        )
    if lesson.start != "distilled" and (idle := [each for each in settings if each.strip().startswith("distilled")]):
        raise ConfigError(
            f"--set {idle[0]}"[:200],
            got=f"a setting that does nothing with --start {lesson.start}",
            allowed="distilled.strength and distilled.temperature with --start distilled",
            remedy="add --start distilled, or leave the setting out",
        )
    if not isinstance(lesson.columns, (Mapping, type(None))):
        raise ConfigError(
            "columns", got=repr(lesson.columns)[:200], allowed="a dictionary, or None", remedy='{"prompt": "question"}'
        )
    if promise is not None and lesson.check == "none":
        raise ConfigError(
            "--promise",
            got=f"{promise:g} with --check none, which measures no earlier task",
            allowed="a promise that is measured",
            remedy="leave --check out; or leave --promise out: a task that is not measured answers exactly as before",
        )
    if not isinstance(lesson.task, str) or not lesson.task.strip() or len(lesson.task) > 200 or "\0" in lesson.task:
        raise TaskDataError(
            "--name",
            got=repr(lesson.task)[:80],
            allowed="a name of 1 to 200 characters",
            remedy="give one with --name",
        )

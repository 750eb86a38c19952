"""What a line of an assistant's ``history.jsonl`` may hold: a task that was learned or forgotten; sample answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, FiniteFloat, NonNegativeInt, model_validator

from backends.finetune.protocols.protocol import Protocol
from backends.finetune.runs.records import Files, SpectralLog, TextRecord

Loss = Annotated[FiniteFloat, Field(gt=0)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]


def _with(*names: str) -> AfterValidator:
    def check(content: dict[str, Any]) -> dict[str, Any]:
        if missing := [name for name in names if name not in content]:
            raise ValueError(f"without {', '.join(missing)}")
        return content

    return AfterValidator(check)


def _protocol(content: dict[str, Any]) -> dict[str, Any]:
    Protocol.model_validate(content)
    return content


class Measure(BaseModel):
    """On the reported texts of a task: mean loss in nats per answer token, and the share of answers that greedy
    decoding gives word for word."""

    loss: Loss
    exact_match: Share


class Check(BaseModel):
    """An earlier task after a phase. ``decision``: losses on its decision split with the CRMA that it had answered with
    and with the new one (CL-11). ``before``, ``now``: on its reported texts, before and after it has moved or not."""

    decision: tuple[Loss, Loss]
    before: Measure
    now: Measure


class LearnedRecord(BaseModel):
    """One task that was learned, in phase ``phase`` of the folder, counted from 0 and never used twice.

    ``data``: name and SHA-256 of what was read. ``start``: the task whose LoRA it started from, and ``distilled``:
    whether it was held near its answers. ``bare``: the base model on its reported texts, and ``own``: after this phase.
    ``checked``: the earlier tasks that were measured; those
    that were not stay with their CRMA. ``versions``: the phase whose CRMA each task answers with from now on.
    ``promise``: the most that a task was allowed to lose, as a fraction, if one was asked for (CL-12). ``files``:
    SHA-256 of what the phase has written. The rest as in a run's record of a phase.
    """

    phase: NonNegativeInt
    task: str
    data: Annotated[dict[str, str], _with("name", "sha256")]
    start: str | None = None
    distilled: bool = False
    bare: Measure
    own: Measure
    checked: dict[str, Check] = {}
    versions: dict[str, NonNegativeInt]
    promise: Annotated[FiniteFloat, Field(ge=0)] | None = None
    texts: Annotated[dict[str, TextRecord], _with("train", "holdout", "decision")]
    losses: list[FiniteFloat]
    gradient_norms: dict[str, list[FiniteFloat]] = {}
    spectral: SpectralLog | None = None
    seconds: FiniteFloat
    tokens: NonNegativeInt
    parameters: dict[str, int]
    memory_bytes: int | None = None
    backend: str
    machine: str
    packages: dict[str, str]
    config: Annotated[dict[str, Any], AfterValidator(_protocol)]
    time: str
    files: Files


class ForgottenRecord(BaseModel):
    """A task that was forgotten: nothing answers for it from now on."""

    task: str
    time: str


class AnswersRecord(BaseModel):
    """What a task is asked, and the answers of the bare base model, of the task after its own phase, and with the CRMA
    of phase ``version``. It is a file of its own and no line, since a line cannot be removed with its task."""

    questions: list[str]
    before: list[str]
    after: list[str]
    now: list[str]
    version: NonNegativeInt

    @model_validator(mode="after")
    def _one_answer_per_question(self) -> AnswersRecord:
        if not len(self.questions) == len(self.before) == len(self.after) == len(self.now):
            raise ValueError("questions, before, after and now differ in length")
        return self


class FolderRecord(BaseModel):
    """What the folder holds: written once, and the first line."""

    format: Literal["crma-assistant"]
    files: Files

"""What a line of ``results.jsonl`` may hold: the run, the bare base model, a finished phase, a question panel.

Clauses: CL-1..CL-7.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any

from pydantic import BaseModel, Field, FiniteFloat, NonNegativeInt, StringConstraints, model_validator

Files = dict[str, Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]]


class RunRecord(BaseModel):
    """What was run. ``displacement_budget`` is delta, and ``data_budget`` epsilon, if one was set for every condition
    that names none; files of earlier versions lack the second. ``random_weights``: the base model has learned
    nothing, so the figures say nothing about quality. ``files``: SHA-256 of run.json and of the tasks' fingerprints."""

    protocol: str
    model: str
    backend: str
    tasks: list[str] = Field(min_length=1, max_length=10_000)  # as many as a protocol may have
    conditions: list[str] = Field(max_length=1000)
    seeds: list[int] = Field(max_length=10_000)
    versions: dict[str, str] = {}
    machine: str = ""
    config: dict[str, Any] = {}
    displacement_budget: FiniteFloat | None = None
    data_budget: FiniteFloat | None = None
    random_weights: bool = False
    files: Files = {}

    @model_validator(mode="after")
    def _tasks_differ(self) -> RunRecord:
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError("two tasks share a name")
        return self


class SpectralLog(BaseModel):
    """Certificates over the layers, one entry per logged step; ``steps`` = optimizer steps taken in this phase.

    ``norm_max``, ``norm_min``: largest and smallest spectral norm of M. ``adapter_max``, ``adapter_min``: largest and
    smallest singular value of any layer's adapter. ``displacement_max``, ``displacement_min``: largest and smallest
    distance from the anchor; null while there is no anchor. ``data_displacement_max``: the largest data displacement,
    with a data budget. Files of earlier versions lack norm_min, displacement_min and data_displacement_max.
    """

    steps: list[NonNegativeInt]
    norm_max: list[FiniteFloat]
    adapter_max: list[FiniteFloat]
    adapter_min: list[FiniteFloat]
    displacement_max: list[FiniteFloat | None]
    norm_min: list[FiniteFloat] = []
    displacement_min: list[FiniteFloat | None] = []
    data_displacement_max: list[FiniteFloat | None] = []

    @model_validator(mode="after")
    def _one_value_per_step(self) -> SpectralLog:
        optional = ("norm_min", "displacement_min", "data_displacement_max")
        added_later = {name for name in optional if not getattr(self, name)}
        for name in SpectralLog.model_fields.keys() - added_later:
            if len(getattr(self, name)) != len(self.steps):
                raise ValueError(f"{name} has {len(getattr(self, name))} values for {len(self.steps)} steps")
        if any(later <= earlier for earlier, later in pairwise(self.steps)):
            raise ValueError("steps do not increase")
        return self


class TextRecord(BaseModel):
    """The texts of one side of a task. ``cut``: how many max_tokens cut, by ``cut_tokens`` in all; each lost its end.
    ``split``: how many have a prompt that ends within a token (:mod:`backends.finetune.tasks.token_ids`)."""

    texts: NonNegativeInt
    cut: NonNegativeInt
    cut_tokens: NonNegativeInt
    split: NonNegativeInt = 0

    def __add__(self, other: TextRecord) -> TextRecord:
        return TextRecord(**{name: getattr(self, name) + getattr(other, name) for name in TextRecord.model_fields})


class PhaseRecord(BaseModel):
    """One finished phase. ``losses``: training loss per optimizer step, and ``holdout``: mean loss of every task seen
    so far, both in nats per answer token; ``tokens``: trained on, in ``seconds`` of wall clock; ``parameters``:
    counts of trainable values. ``before``: mean loss of the phase's own task just before it was trained on.
    ``exact_match``: per task seen, the fraction of its canaries that greedy decoding recalls. ``text_losses``: of
    every task seen, the loss of each held-out text, summed over its answer tokens, in nats; ``answer_tokens``: how
    many these are in each held-out text of the phase's own task; files of earlier versions lack both.
    ``memory_bytes``: peak on a GPU, resident on a CPU. ``texts``: of the phase's own task, by side ("train",
    "holdout", "canaries"); files of earlier versions lack it. ``start``: the earlier task whose LoRA it started
    from. ``versions``: per task seen, the phase whose CRMA it answers with, and ``decision``: per earlier task, the
    losses on its decision split with the version that it had answered with and with this phase's, where a ratchet
    decides (CL-11). ``files``: SHA-256 of every file that the phase has written, by its path within the run folder."""

    condition: str
    seed: int
    phase: NonNegativeInt
    task: str
    losses: list[FiniteFloat]
    gradient_norms: dict[str, list[FiniteFloat]] = {}
    holdout: dict[str, FiniteFloat]
    seconds: FiniteFloat
    tokens: int
    parameters: dict[str, int] = {}
    spectral: SpectralLog | None = None
    before: FiniteFloat | None = None
    exact_match: dict[str, FiniteFloat] = {}
    text_losses: dict[str, list[FiniteFloat]] = {}
    answer_tokens: list[NonNegativeInt] = []
    memory_bytes: int | None = None
    texts: dict[str, TextRecord] = {}
    start: str | None = None
    versions: dict[str, NonNegativeInt] = {}
    decision: dict[str, tuple[FiniteFloat, FiniteFloat]] = {}
    files: Files = {}

    @model_validator(mode="after")
    def _steps_lie_in_this_phase(self) -> PhaseRecord:
        if self.spectral and self.spectral.steps and self.spectral.steps[-1] > len(self.losses):
            raise ValueError(
                f"spectral.steps reaches {self.spectral.steps[-1]}, the phase has {len(self.losses)} steps"
            )
        return self


class BaseRecord(BaseModel):
    """The bare base model, before anything is trained: ``holdout`` and ``exact_match`` of every task."""

    seed: int
    holdout: dict[str, FiniteFloat]
    exact_match: dict[str, FiniteFloat] = {}


class PanelRecord(BaseModel):
    """The inference toggle after the last phase: per question its task, and whether it was answered rightly with both
    adapters, without CRMA, without LoRA and by the bare model (the last two are empty in runs of earlier versions).
    ``cut``: how many options max_tokens cut, and so were judged by their beginning."""

    condition: str
    seed: int
    tasks: list[str] = Field(min_length=1)
    with_crma: list[bool]
    without_crma: list[bool]
    without_lora: list[bool] = []
    without_both: list[bool] = []
    cut: NonNegativeInt = 0

    @model_validator(mode="after")
    def _one_answer_per_question(self) -> PanelRecord:
        later = [self.without_lora, self.without_both] if self.without_lora or self.without_both else []
        if any(len(answers) != len(self.tasks) for answers in (self.with_crma, self.without_crma, *later)):
            raise ValueError("tasks, with_crma, without_crma, without_lora and without_both differ in length")
        return self

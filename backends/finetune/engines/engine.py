"""What a session asks of an engine: the steps of one condition and seed, in one framework."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from backends.finetune.engines.world import World
from backends.finetune.runs.run_folder import PhaseFiles
from backends.finetune.tasks.encoding import Batch
from backends.finetune.tasks.job import Job


class StepReport(NamedTuple):
    """One optimizer step: loss in nats per answer token, gradient norm per parameter group before clipping."""

    loss: float
    gradient_norms: dict[str, float]


class SpectralReport(NamedTuple):
    """The extreme layers of each certificate; displacements are None while there is no anchor, and
    ``data_displacement_max``, what earlier tasks' tokens see, is None without a data budget."""

    norm_max: float
    norm_min: float
    adapter_max: float
    adapter_min: float
    displacement_max: float | None
    displacement_min: float | None
    data_displacement_max: float | None

    @classmethod
    def of(cls, certificate: Any, displacement: Any, data_displacement: Any = None) -> SpectralReport:
        """From a framework's arrays, a value for each layer; ``displacement``: None without an anchor."""
        return cls(
            norm_max=float(certificate.mixing_norm.max()),
            norm_min=float(certificate.mixing_norm.min()),
            adapter_max=float(certificate.largest.max()),
            adapter_min=float(certificate.smallest.min()),
            displacement_max=None if displacement is None else float(displacement.max()),
            displacement_min=None if displacement is None else float(displacement.min()),
            data_displacement_max=None if data_displacement is None else float(data_displacement.max()),
        )


class RowScore(NamedTuple):
    """One row of a batch: its loss in nats, summed over its answer tokens, and whether greedy decoding would give
    exactly these tokens (each is the most probable one after the right ones before it, which is the same)."""

    loss: float
    tokens: int
    is_greedy: bool


def mean_loss(scores: Sequence[RowScore]) -> float:
    """In nats per answer token, of all rows together."""
    return math.fsum(score.loss for score in scores) / sum(score.tokens for score in scores)


class Engine(Protocol):
    """One condition and seed. ``phase`` counts the tasks from 0. It is given batches, and knows no text."""

    world: World

    def begin_phase(self, phase: int, steps: int) -> None:
        """Make ready what the phase trains (a fresh LoRA, or the shared one), with a new optimizer."""

    def start_from(self, files: PhaseFiles) -> None:
        """Begin the phase with the LoRA of a finished one instead of a fresh draw."""
        ...

    def step(self, batches: Sequence[Batch], index: int, memory: Batch | None = None) -> StepReport:
        """One optimizer step on all of ``batches``; ``memory``: examples beside them, for a method that asks.

        Raises: TrainingDivergedError before any parameter is changed."""

    def finish_phase(self, phase: int, examples: Iterable[Batch]) -> None:
        """What a method learns from a finished phase, from batches of one; or, with a data budget, the moment of its
        training texts, which ``examples`` are then all of.

        Raises: TrainingDivergedError where the residual stream is not finite."""

    def spectrum(self) -> SpectralReport | None:
        """Certificates of the shared CRMA as it is now; None without one."""

    def answer_with(self, phase: int, files: PhaseFiles) -> None:
        """Answer from now on as the task of a finished ``phase`` does: with its LoRA, and, where pinned, its CRMA."""

    def scores(self, batches: Sequence[Batch]) -> list[RowScore]:
        """Every row of every batch by itself, with what answers now.

        Raises: TrainingDivergedError for a loss that is not finite."""

    def without_crma(self) -> AbstractContextManager[None]:
        """Answer without the shared CRMA inside the block."""

    def without_lora(self) -> AbstractContextManager[None]:
        """Answer without LoRA inside the block: the base model, with the shared CRMA where there is one."""

    def save_phase(self, phase: int, files: PhaseFiles) -> None:
        """Write what the phase trained."""

    def restore(self, phases: Sequence[PhaseFiles]) -> None:
        """Read what :meth:`save_phase` wrote for the finished phases, in their order."""

    def continue_from(self, anchor: PhaseFiles, now: PhaseFiles) -> None:
        """Go on with a shared CRMA from elsewhere: its state after its first task, from which displacement counts, and
        its state now, with the moments that a data budget needs. Before the first phase that is begun."""
        ...

    def save_checkpoint(self, path: Path, progress: dict[str, Any]) -> None:
        """Write trainables, optimizer state and ``progress`` to one file, atomically."""

    def load_checkpoint(self, path: Path, phase: int) -> dict[str, Any] | None:
        """Restore a checkpoint of ``phase`` and return its progress; None, changing nothing, if there is none of it.

        Raises: RunFolderError for a damaged file."""

    def parameter_counts(self) -> dict[str, int]:
        """Trainable values: {"lora": ..., "crma": ...} or {"full": ...}."""

    def memory_bytes(self) -> int:
        """On a GPU the peak since the phase began, or, with JAX, which cannot forget one, since the process began;
        resident, on a CPU."""


EngineFactory = Callable[[Job], Engine]

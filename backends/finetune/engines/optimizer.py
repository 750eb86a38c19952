"""What the optimizer of a phase is told, whatever the framework: groups, learning rates, clipping, schedule."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from backends.finetune.engines.engine import StepReport
from backends.finetune.methods.full import FullSection
from backends.finetune.methods.method import Condition
from backends.finetune.models.memory_errors import ANEW
from backends.finetune.protocols.protocol import LoraSection, Protocol
from reference.errors import NonFiniteError, TrainingDivergedError

CRMA_GROUPS = ("basis", "mixing", "gate")


class GroupSettings(NamedTuple):
    """Learning rate at the top of the schedule, and the norm that the group's gradient is clipped to."""

    learning_rate: float
    clip: float


def group_settings(protocol: Protocol, condition: Condition, phase: int) -> dict[str, GroupSettings]:
    """Per group of parameters that train in ``phase``: "lora" or "full"; with CRMA "basis", "mixing" and "gate".

    One norm per group: their gradients differ by orders of magnitude, a joint norm would silence the small ones.
    """
    if condition.trains == "full":
        return {"full": _later(condition.settings(protocol), phase)}
    groups = {"lora": _later(protocol.lora, phase)}
    later = protocol.crma.later_rate_factor if phase > 0 else 1.0
    for name in crma_groups(condition, phase):
        section = getattr(protocol.crma, name)
        groups[name] = GroupSettings(section.learning_rate * later, section.clip)
    return groups


def _later(section: LoraSection | FullSection, phase: int) -> GroupSettings:
    factor = section.later_rate_factor if phase > 0 else 1.0
    return GroupSettings(section.learning_rate * factor, section.clip)


def trains_crma(condition: Condition, phase: int) -> bool:
    """Whether the shared CRMA learns in ``phase``."""
    return condition.crma != "none" and (condition.trains_crma != "first-task" or phase == 0)


def crma_groups(condition: Condition, phase: int) -> tuple[str, ...]:
    """The groups of the shared CRMA that learn in ``phase``."""
    still = phase > 0 and condition.basis == "first-task"
    return tuple(name for name in CRMA_GROUPS if not (still and name == "basis")) * trains_crma(condition, phase)


def rate_factor(index: int, steps: int, warmup_steps: int) -> float:
    """Linear warm-up, then linear decay to zero at the end of the phase; ``index`` counts steps from 0."""
    warmup = min(warmup_steps, steps - 1)
    if index < warmup:
        return (index + 1) / (warmup + 1)
    return (steps - index) / (steps - warmup)


def check_step(report: StepReport, phase: int, index: int) -> None:
    """Raise TrainingDivergedError unless loss and gradient norms are finite."""
    if not all(map(math.isfinite, (report.loss, *report.gradient_norms.values()))):
        raise TrainingDivergedError(
            f"phase {phase}, step {index + 1}",
            got=f"loss {report.loss}, gradient norms {report.gradient_norms}",
            allowed="finite values",
            remedy=f"lower the learning rate of the group that is not finite; {ANEW}",
        )


def check_scores(losses: Iterable[float], phase: int) -> None:
    """Raise TrainingDivergedError unless the losses of all rows are finite."""
    if not math.isfinite(total := math.fsum(map(abs, losses))):
        raise TrainingDivergedError(
            f"loss of held-out texts, phase {phase}",
            got=total,
            allowed="a finite value",
            remedy=f"lower the learning rates; {ANEW}",
        )


@contextmanager
def divergence(phase: int) -> Iterator[None]:
    """Where parameters of the CRMA turn out not to be finite, the training diverged. Raises: TrainingDivergedError."""
    try:
        yield
    except NonFiniteError as error:
        field = f"phase {phase}: {error.field}"
        raise TrainingDivergedError(field, got=error.got, allowed=error.allowed, remedy=error.remedy) from error

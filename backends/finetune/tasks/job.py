"""What one way through one sequence of tasks is made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backends.finetune.methods.method import Condition
from backends.finetune.protocols.protocol import Protocol
from backends.finetune.tasks.task import Task


@dataclass(frozen=True)
class Job:
    """``model``: folder of the base model. ``tasks``: in their order; an engine does not look at them."""

    model: Path
    protocol: Protocol
    condition: Condition
    seed: int
    tasks: Sequence[Task] = ()

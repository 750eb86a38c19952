"""What a method of continual learning is, for every part of the program that asks about it.

A method is a file of this folder and a line in ``conditions.py``. Where no framework is loaded its names and settings
are read all the same: torch is imported inside the functions that compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from backends.finetune.methods.section import Section

if TYPE_CHECKING:
    from torch import Tensor, nn

AnswerLogits = Callable[[Any], "tuple[Tensor, Tensor]"]  # logits (answer tokens, vocabulary) in float32, and labels


class Mark(NamedTuple):
    """How a condition is drawn: matplotlib's colour, line style and marker."""

    colour: str
    line: Any
    marker: str


class Slot(Protocol):
    """The one LoRA that is in memory."""

    @property
    def layers(self) -> Mapping[str, Any]: ...
    def parameters(self) -> dict[str, nn.Parameter]: ...
    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """A (r, in) and B (out, r) of every layer."""

    def load(self, folder: Path) -> None: ...


class Training(NamedTuple):
    """What the PyTorch engine gives a method: the LoRA that trains, alpha / r, a forward pass with it, and the seed."""

    slot: Slot
    scaling: float
    answer_logits: AnswerLogits
    seed: int


class Method:
    """Adds nothing: LoRA, CRMA or the base model trained as the condition says.

    Attributes:
        section: of the protocol, under the condition's name with an underscore for each hyphen.
        memory: whether a step is given examples of earlier tasks, "joined" to its batch or "beside" it.
        keeps_file: whether it holds on to tensors from phase to phase (``state``, ``load_state``).
    """

    section: ClassVar[type[Section] | None] = None
    memory: ClassVar[Literal["none", "joined", "beside"]] = "none"
    keeps_file: ClassVar[bool] = False

    # For the plan -----------------------------------------------------------------------------------------------------

    @staticmethod
    def examples(settings: Any) -> int:
        """How many training examples of a finished phase :meth:`finish_phase` looks at."""
        return 0

    @classmethod
    def work(cls, settings: Any, batch_size: int, evaluation: float) -> float:
        """A step's cost from the second task on, in steps without it; a forward pass alone costs ``evaluation``."""
        return 1.0 if cls.memory == "none" else 1 + float(settings.batch_size) / batch_size

    @staticmethod
    def held_bytes(lora: float, phases: int, answered: float) -> float:
        """What it holds in the last phase, beside ``lora`` bytes of a LoRA and ``answered`` of float32 logits."""
        return 0.0

    @staticmethod
    def kept_values(lora: int) -> int:
        """Of its file of a phase, beside ``lora`` values of a LoRA."""
        return 0

    # In the PyTorch engine --------------------------------------------------------------------------------------------

    def __init__(self, settings: Any, training: Training) -> None:
        self.settings, self.training, self.slot = settings, training, training.slot

    def begin_phase(self, phase: int) -> None:
        """Before the first step of a phase."""

    def prepare(self, batch: Any) -> Any:
        """Before the forward pass of a batch: what :meth:`batch_loss` will want."""

    def batch_loss(self, prepared: Any, logits: Tensor) -> Tensor | None:
        """Summed over the answer tokens of a batch, like the loss it is added to."""
        return None

    def penalty(self) -> Tensor | None:
        """Added once a step."""
        return None

    def adjusted(self, gradients: Sequence[Tensor], of_memory: Sequence[Tensor]) -> list[Tensor]:
        """The gradients of a step, given those of the examples "beside" it."""
        return list(gradients)

    def finish_phase(self, phase: int, examples: Iterable[Any]) -> None:
        """After the last step of a phase; ``examples`` are batches of one."""

    def state(self) -> dict[str, Tensor]:
        """What later phases need, for its file."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Become what :meth:`state` returned."""

    def restore(self, loras: Sequence[Path]) -> None:
        """After a restart: the LoRAs of the finished phases; then the slot holds the last of them."""
        self.slot.load(loras[-1])


@dataclass(frozen=True)
class Condition:
    """One way through the sequence of tasks.

    Attributes:
        name: as the user writes it and as the run folder has it. label: as tables and pictures have it. mark: as
            pictures draw it.
        trains: "per-task", a fresh LoRA in each phase; "shared", one LoRA in all phases; "summed", a fresh LoRA whose
            output is added to that of all earlier ones (O-LoRA); "full", the base model's own parameters.
        crma: whether there is a shared CRMA, with a doubly stochastic mixing matrix or an unconstrained one.
        trains_crma: whether it goes on training after the first task, or begins anew with each.
        pinned: whether a task answers with the CRMA as it was after its own phase, rather than as it is now.
        ratchet: whether a pinned task moves to a later version that does not serve it worse (CL-11).
        start: where the LoRA of a later task starts: from a fresh draw, from the last task's, or from that of the
            earlier task which gives the new texts the lowest loss.
        answers: whether a task is answered with its own LoRA, or with the newest one of its domain, where that comes
            again.
        basis: whether the basis of the CRMA goes on training after the first task with the rest of it.
        budget: displacement budget: a number (infinity = none), or None for the protocol's.
        data_budget: epsilon, the most that a layer may move what the tokens of earlier tasks saw, or None for no such
            budget. It needs a basis that stays, and takes the place of the displacement budget.
        raised_rank: whether LoRA's rank is raised until it has as many parameters as MODULAR's LoRA and CRMA.
        epochs: how many times the protocol's passes over each task's texts are made.
        draw: which of the draws of LoRA's start a phase takes; conditions with the same one compare.
        method: the published method that is added.
        section: of a protocol, in which the method's settings are, where it is not named as the condition is.
    """

    name: str
    label: str
    mark: Mark
    trains: Literal["per-task", "shared", "summed", "full"] = "per-task"
    crma: Literal["none", "doubly-stochastic", "unconstrained"] = "none"
    trains_crma: Literal["always", "first-task", "each-anew"] = "always"
    pinned: bool = False
    ratchet: bool = False
    start: Literal["fresh", "last", "nearest"] = "fresh"
    answers: Literal["own", "newest"] = "own"
    basis: Literal["always", "first-task"] = "always"
    budget: float | None = None
    data_budget: float | None = None
    raised_rank: bool = False
    epochs: int = 1
    draw: int = 0
    method: type[Method] = Method
    section: str = ""

    @property
    def settings_section(self) -> str | None:
        """The section of a protocol that the method's settings are in; None if it has none."""
        return (self.section or section_name(self.name)) if self.method.section else None

    @property
    def never_drifts(self) -> bool:
        """Whether nothing that a finished task answers with ever changes, so that its drift is exactly 0."""
        is_kept = self.pinned and not self.ratchet
        if self.answers == "newest":
            return False
        return self.trains == "per-task" and (self.crma == "none" or is_kept or self.trains_crma == "first-task")

    def lora_of(self, seen: int, domains: Sequence[str]) -> int:
        """The phase whose LoRA answers for a task, with a LoRA for each, after a phase for each of ``domains``."""
        if self.answers == "own":
            return seen
        return max(phase for phase, domain in enumerate(domains) if domain == domains[seen])

    def measured(self, phase: int) -> range:
        """The tasks that have to be measured after a phase, the others being answered with what they were before."""
        return range(phase if self.never_drifts else 0, phase + 1)

    def limit(self, default: float | None) -> float | None:
        """delta, the most that a layer of the shared CRMA may move after the first task; None where nothing limits it.

        ``default``: the protocol's ``displacement_budget``.
        """
        budget = default if self.budget is None else self.budget
        limited = self.crma == "doubly-stochastic" and budget is not None and not math.isinf(budget)
        return budget if limited else None

    def with_data_budget(self, epsilon: float | None) -> Condition:
        """This condition with the protocol's data budget, if it has one, where the shared CRMA goes on learning and has
        no budget of its own.
        """
        goes_on = self.crma == "doubly-stochastic" and self.trains_crma == "always"
        if epsilon is None or not goes_on or self.budget is not None or self.data_budget is not None:
            return self
        return replace(self, basis="first-task", data_budget=epsilon)

    def settings(self, protocol: Any) -> Any:
        """The method's section of a protocol, its defaults where that leaves it out; None if it has none."""
        name, kind = self.settings_section, self.method.section
        return None if name is None or kind is None else getattr(protocol, name) or kind()


def section_name(condition: str) -> str:
    """A condition's section of a protocol, as TOML has it."""
    return condition.replace("-", "_")

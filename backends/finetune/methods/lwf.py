"""Learning without forgetting: on the new task's inputs the model keeps the answers it gave before the task.

Source: Z. Li, D. Hoiem (2016), "Learning without Forgetting", ECCV (extended in IEEE TPAMI 40, 2018), equations 2-4:
the loss of the new task plus ``lambda_o = 1`` times the distillation loss at temperature ``T = 2``.

Left to us: a language model has one output for all tasks, so "old task" is the next-token distribution of the model as
it was when the phase began, at each answer token of the new task, and there is no new head to warm up first. Recorded
are logits, or the old model that computes them again: the same thing, as it is fixed.

In the conditions *distilled*, which are ours, a task keeps the LoRA that it was trained with. A new one starts from the
last and is held near its answers, so that it learns the new task without leaving what the old one knew; no LoRA of an
earlier task changes. With a shared CRMA the old LoRA is asked with the CRMA as it is now: what is distilled is LoRA's
part. Their control is a fresh LoRA that is held near the answers of the base model: it has softer targets, and nothing
of an earlier task.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from backends.finetune.methods.method import Condition, Mark, Method, Training
from backends.finetune.methods.section import Factor, Positive, Section
from reference.errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor, nn


class LwfSection(Section):
    """Learning without Forgetting: the weight of the distillation loss, and its temperature."""

    strength: Factor = 1.0
    temperature: Positive = 2.0


class LearningWithoutForgetting(Method):
    """What the model answered before this phase, on this phase's texts, is to be kept.

    Attributes:
        of_base: whether that is what the base model answers, in place of what the LoRA before did.
    """

    section = LwfSection
    of_base: ClassVar[bool] = False

    def __init__(self, settings: LwfSection, training: Training) -> None:
        super().__init__(settings, training)
        self.teacher: dict[str, Tensor] | None = None

    @classmethod
    def work(cls, settings: LwfSection, batch_size: int, evaluation: float) -> float:
        return 1 + evaluation

    @staticmethod
    def held_bytes(lora: float, phases: int, answered: float) -> float:
        return lora + 2 * answered  # the LoRA before the phase; its logits and their probabilities

    def begin_phase(self, phase: int) -> None:
        import torch

        if phase > 0:
            keep = torch.zeros_like if self.of_base else torch.clone  # a LoRA of zeros adds nothing
            self.teacher = {name: keep(value.detach()) for name, value in self.slot.parameters().items()}

    def prepare(self, batch: Any) -> Tensor | None:
        import torch

        if self.teacher is None:
            return None
        with torch.no_grad(), _in_place_of(self.slot.parameters(), self.teacher):
            return self.training.answer_logits(batch)[0]

    def batch_loss(self, prepared: Any, logits: Tensor) -> Tensor | None:
        if prepared is None:
            return None
        return self.settings.strength * distillation_loss(logits, prepared, self.settings.temperature)


class NearBase(LearningWithoutForgetting):
    """What the base model answers, on the texts of every phase but the first, is to be kept."""

    of_base = True


@contextmanager
def _in_place_of(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> Iterator[None]:
    own = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = values[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]


def distillation_loss(logits: Tensor, old_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """``-sum_rows sum_i p'_i log p_i``, ``p = softmax(logits / T)``, ``p' = softmax(old_logits / T)``.

    ``softmax(l / T)`` is the published ``y_i^(1/T) / sum_j y_j^(1/T)`` of the probabilities ``y = softmax(l)``. There
    is no factor ``T^2``: Li and Hoiem have none, unlike G. Hinton, O. Vinyals, J. Dean (2015), "Distilling the
    Knowledge in a Neural Network". So the gradient is ``(p - p') / T`` in each row, and the loss is the entropy of
    ``p'`` at its least.

    Args:
        logits: of the model now, shape (tokens, vocabulary), any floating dtype. old_logits: of the old model for the
            same tokens, that shape; gets no gradient. temperature: T > 0.

    Returns:
        The sum over tokens in nats, 0-d, computed in float32 (float64 for float64 logits).

    Raises: ShapeError.
    """
    from torch import nn

    if logits.ndim != 2 or logits.shape != old_logits.shape:
        raise ShapeError(
            "old_logits",
            got=f"{tuple(old_logits.shape)} beside logits {tuple(logits.shape)}",
            allowed="two tensors of one shape (tokens, vocabulary)",
            remedy="take the logits of the same answer tokens from both models",
        )
    new, old = (each if each.dtype.itemsize == 8 else each.float() for each in (logits, old_logits.detach()))
    return nn.functional.cross_entropy(new / temperature, (old / temperature).softmax(-1), reduction="sum")


DISTILLED: dict[str, Any] = {"start": "last", "method": LearningWithoutForgetting, "section": "distilled"}
CONDITIONS = (
    Condition(
        "lwf", "LwF", Mark("#8C510A", (0, (3, 1, 1, 1, 1, 1)), ">"), trains="shared", method=LearningWithoutForgetting
    ),
    Condition("frozen-distilled", "FROZEN, distilled", Mark("#D8A35D", (0, (5, 1, 1, 1)), "8"), **DISTILLED),
    Condition(
        "frozen-near-base",
        "FROZEN, near the base model",
        Mark("#E3C394", (0, (2, 1)), "8"),
        method=NearBase,
        section="distilled",
    ),
    Condition(
        "modular-distilled",
        "MODULAR, distilled",
        Mark("#A6761D", (0, (7, 1)), "8"),
        crma="doubly-stochastic",
        **DISTILLED,
    ),
)

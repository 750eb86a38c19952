"""A-GEM: a step may not raise the loss on a memory of the earlier tasks, to first order.

Source: A. Chaudhry, M. Ranzato, M. Rohrbach, M. Elhoseiny (2019), "Efficient Lifelong Learning with A-GEM", ICLR,
equation 11: with g the gradient of the step and g_ref that of a random batch from the memory of all earlier tasks,
``g~ = g`` where ``g . g_ref >= 0`` and otherwise ``g~ = g - (g . g_ref / g_ref . g_ref) g_ref``.

Left to us: the memory (``memory.py``), of a fixed size per task; g and g_ref are those before clipping, of all
trained parameters as one vector; the optimizer is AdamW, as for all conditions, where the paper has SGD: its averages
mix steps, so the promise to first order is that of g~, not of the update.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from backends.finetune.methods.method import Condition, Mark, Method
from backends.finetune.methods.section import MemorySection

if TYPE_CHECKING:
    from torch import Tensor


class AveragedGradientEpisodicMemory(Method):
    section = MemorySection
    memory = "beside"

    @staticmethod
    def held_bytes(lora: float, phases: int, answered: float) -> float:
        return lora  # g, while g_ref is computed

    def adjusted(self, gradients: Sequence[Tensor], of_memory: Sequence[Tensor]) -> list[Tensor]:
        return projected(gradients, of_memory)


def projected(gradients: Sequence[Tensor], of_memory: Sequence[Tensor]) -> list[Tensor]:
    """g~ of the two gradients, tensor by tensor: ``g~ . g_ref >= 0`` up to rounding; g itself where that holds.

    A memory whose gradient vanishes asks for nothing. The products are summed in float64.
    """
    together = sum(float((g.double() * ref.double()).sum()) for g, ref in zip(gradients, of_memory, strict=True))
    if together >= 0:
        return list(gradients)
    size = sum(float(ref.double().square().sum()) for ref in of_memory)
    return [g - (together / size) * ref for g, ref in zip(gradients, of_memory, strict=True)]


CONDITIONS = (
    Condition(
        "a-gem",
        "A-GEM",
        Mark("#1B7837", (0, (2, 1, 1, 1)), "d"),
        trains="shared",
        method=AveragedGradientEpisodicMemory,
    ),
)

"""O-LoRA: each task learns a LoRA of its own whose subspace is kept orthogonal to those of the earlier tasks.

Source: X. Wang, T. Chen, Q. Ge, H. Xia, R. Bao, R. Zheng, Q. Zhang, T. Gui, X. Huang (2023), "Orthogonal Subspace
Learning for Language Model Continual Learning", Findings of EMNLP, section 3 (the losses named L_orth). The LoRAs of
earlier tasks stay in the forward pass, fixed; ``lambda_1 sum_{i<t} L_orth(A_i, A_t)`` is added to the mean loss per
token of task t. The answer to every task comes from the sum of all LoRAs.

Left to us: the sum of squares of the paper, where the authors' released code sums absolute values instead and adds
``lambda_2`` times the norm of the new LoRA, which the paper does not have; and keeping the earlier LoRAs of a layer as
one stacked pair, which computes the same sum in two products whatever their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from backends.finetune.methods.method import Condition, Mark, Method, Training
from backends.finetune.methods.section import Factor, Section
from reference.errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor, nn


class OrthogonalLoraSection(Section):
    """O-LoRA: the weight of the orthogonality loss."""

    strength: Factor = 0.5


class OrthogonalLora(Method):
    """The LoRAs of earlier tasks stay in the forward pass, and the new A keeps orthogonal to theirs."""

    section = OrthogonalLoraSection

    def __init__(self, settings: OrthogonalLoraSection, training: Training) -> None:
        from torch import nn

        super().__init__(settings, training)
        self.earlier: dict[str, tuple[Tensor, Tensor]] = {}
        for name, layer in self.slot.layers.items():
            nn.Module.register_forward_hook(cast(nn.Module, layer), self._hook(name))

    @staticmethod
    def held_bytes(lora: float, phases: int, answered: float) -> float:
        return (phases - 1) * lora  # the LoRAs of all earlier tasks

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add_earlier(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if name not in self.earlier:
                return output
            a, b = self.earlier[name]
            return output + earlier_output(inputs[0], a, b).to(output.dtype)

        return add_earlier

    def penalty(self) -> Tensor | None:
        import torch

        if not self.earlier:
            return None
        own = self.slot.factors()
        losses = [orthogonality_loss(own[name][0], a) for name, (a, _) in self.earlier.items()]
        return cast("Tensor", self.settings.strength * torch.stack(losses).sum())

    def begin_phase(self, phase: int) -> None:
        if phase > 0:  # the slot still holds what the phase before trained
            self._stack()

    def restore(self, loras: Sequence[Path]) -> None:
        for earlier in loras[:-1]:
            self.slot.load(earlier)
            self._stack()
        super().restore(loras)

    def _stack(self) -> None:
        for name, (a, b) in self.slot.factors().items():
            self.earlier[name] = stack_lora(self.earlier.get(name), a, b, self.training.scaling)


def orthogonality_loss(a: Tensor, earlier: Tensor) -> Tensor:
    """``||A_prev A^T||_F^2``: the sum over earlier tasks of ``sum_jk O[j, k]^2``, ``O = A_i A^T``.

    Args:
        a: the LoRA that is trained, shape (r, in); its rows span the subspace of the task.
        earlier: the A of all earlier tasks, stacked, shape (R, in); gets no gradient.

    Returns:
        0-d. 0 exactly when every row of ``a`` is orthogonal to every earlier row. Raises: ShapeError.
    """
    if a.ndim != 2 or earlier.ndim != 2 or a.shape[1] != earlier.shape[1]:
        raise ShapeError(
            "earlier",
            got=f"{tuple(earlier.shape)} beside a {tuple(a.shape)}",
            allowed="(R, in) beside (r, in)",
            remedy="compare the A matrices of one layer",
        )
    return (earlier.detach() @ a.mT).square().sum()


def stack_lora(previous: tuple[Tensor, Tensor] | None, a: Tensor, b: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Append a finished LoRA ``scaling * B A`` to those before it: ``B_prev A_prev`` is the sum of all.

    Args:
        previous: (A_prev, B_prev) of shapes (R, in) and (out, R), or None before the first. a: shape (r, in).
            b: shape (out, r). scaling: folded into B, as PEFT's ``alpha / r``.

    Returns:
        (A, B) of shapes (R + r, in) and (out, R + r), copies without gradient. Raises: ShapeError.
    """
    import torch

    wanted = (a.shape[-1], b.shape[0]) if previous is None else (previous[0].shape[1], previous[1].shape[0])
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or (a.shape[1], b.shape[0]) != wanted:
        raise ShapeError(
            "a, b",
            got=f"{tuple(a.shape)} and {tuple(b.shape)} for a layer of {wanted[0]} inputs and {wanted[1]} outputs",
            allowed="(r, in) and (out, r) of one layer",
            remedy="stack the LoRAs of one layer, A before B",
        )
    a, b = a.detach().clone(), b.detach() * scaling
    if previous is None:
        return a, b
    return torch.cat([previous[0].detach(), a]), torch.cat([previous[1].detach(), b], dim=1)


def earlier_output(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``x A^T B^T``: what the earlier LoRAs of :func:`stack_lora` add to the output of their layer.

    Args:
        x: the layer's input, shape (..., in), any floating dtype. a: shape (R, in). b: shape (out, R).

    Returns:
        Shape (..., out), in the dtype of ``a``: add it to the layer's output, then round to the output's dtype.
    """
    from torch import nn

    return nn.functional.linear(nn.functional.linear(x.to(a.dtype), a), b)


CONDITIONS = (
    Condition("o-lora", "O-LoRA", Mark("#6A51A3", (0, (5, 1, 2, 1)), "h"), trains="summed", method=OrthogonalLora),
)

"""What the published baselines add to a step of the PyTorch engine; their formulas are in ``baselines/``.

Experience replay adds examples to the batches, which is the session's part, and so has no class here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from backends.atomic import atomic_write
from backends.finetune.engines.torch.lora import LoraSlot, factors
from backends.finetune.methods.elastic_weight_consolidation import ConsolidatedWeights, diagonal_fisher
from backends.finetune.methods.learning_without_forgetting import distillation_loss
from backends.finetune.methods.orthogonal_lora import earlier_output, orthogonality_loss, stack_lora
from backends.finetune.protocols.conditions import Condition
from backends.finetune.protocols.protocol import Protocol
from backends.finetune.runs.checkpoint_file import damaged_phase
from backends.finetune.runs.run_folder import PhaseFiles
from backends.finetune.tasks.encoding import Batch
from backends.sealed import read_sealed, seal

AnswerLogits = Callable[[Batch], tuple[Tensor, Tensor]]  # logits (answer tokens, vocabulary) in float32, and labels


class Baseline:
    """Adds nothing. ``slot`` is the LoRA that trains, ``answer_logits`` a forward pass with it."""

    needs_fisher = False

    def __init__(self, protocol: Protocol, slot: LoraSlot, answer_logits: AnswerLogits, seed: int) -> None:
        self.protocol, self.slot, self.answer_logits, self.seed = protocol, slot, answer_logits, seed

    def begin_phase(self, phase: int) -> None:
        """Before the first step of a phase."""

    def prepare(self, batch: Batch) -> Any:
        """Before the forward pass of a batch: what :meth:`batch_loss` will want."""

    def batch_loss(self, prepared: Any, logits: Tensor) -> Tensor | None:
        """Summed over the answer tokens of a batch, like the loss it is added to."""
        return None

    def penalty(self) -> Tensor | None:
        """Added once a step."""
        return None

    def finish_phase(self, phase: int, examples: Iterable[Batch]) -> None:
        """After the last step of a phase; ``examples`` are batches of one."""

    def save(self, files: PhaseFiles) -> None:
        """Write what later phases need, before the phase counts as finished."""

    def restore(self, phases: Sequence[PhaseFiles]) -> None:
        """Read what the finished phases left; then the slot holds the LoRA of the last of them."""
        self.slot.load(phases[-1].lora)


class ElasticWeightConsolidation(Baseline):
    """EWC, with the diagonal Fisher of each task's answers, labels drawn from the model."""

    needs_fisher = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.consolidated = ConsolidatedWeights()

    def penalty(self) -> Tensor | None:
        if not self.consolidated:
            return None
        return self.consolidated.penalty(self.slot.parameters(), self.protocol.ewc.strength)

    def finish_phase(self, phase: int, examples: Iterable[Batch]) -> None:
        parameters: dict[str, Any] = self.slot.parameters()
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + phase)
        fisher = diagonal_fisher(parameters, self._log_likelihoods(examples, generator))
        self.consolidated.add(fisher, {name: value.detach().clone() for name, value in parameters.items()})

    def _log_likelihoods(self, examples: Iterable[Batch], generator: torch.Generator) -> Iterator[Tensor]:
        for example in examples:
            log_probabilities = self.answer_logits(example)[0].log_softmax(-1)
            drawn = torch.multinomial(log_probabilities.detach().exp().cpu(), 1, generator=generator)
            yield log_probabilities.gather(1, drawn.to(log_probabilities.device)).sum()

    def save(self, files: PhaseFiles) -> None:
        cpu = {name: tensor.cpu().contiguous() for name, tensor in self.consolidated.state().items()}
        atomic_write(files.consolidated, seal(safetensors.torch.save(cpu)))

    def restore(self, phases: Sequence[PhaseFiles]) -> None:
        super().restore(phases)
        device = next(iter(self.slot.parameters().values())).device
        self.consolidated.load(read_tensors(phases[-1].consolidated, device))


class LearningWithoutForgetting(Baseline):
    """LwF: what the model answered before this phase, on this phase's texts, is to be kept."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.teacher: dict[str, Tensor] | None = None

    def begin_phase(self, phase: int) -> None:
        if phase > 0:
            self.teacher = {name: value.detach().clone() for name, value in self.slot.parameters().items()}

    def prepare(self, batch: Batch) -> Tensor | None:
        if self.teacher is None:
            return None
        with torch.no_grad(), _in_place_of(self.slot.parameters(), self.teacher):
            return self.answer_logits(batch)[0]

    def batch_loss(self, prepared: Any, logits: Tensor) -> Tensor | None:
        if prepared is None:
            return None
        section = self.protocol.lwf
        return section.strength * distillation_loss(logits, prepared, section.temperature)


class OrthogonalLora(Baseline):
    """O-LoRA: the LoRAs of earlier tasks stay in the forward pass, and the new A keeps orthogonal to theirs."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.earlier: dict[str, tuple[Tensor, Tensor]] = {}
        for name, layer in self.slot.layers.items():
            nn.Module.register_forward_hook(cast(nn.Module, layer), self._hook(name))

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add_earlier(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if name not in self.earlier:
                return output
            a, b = self.earlier[name]
            return output + earlier_output(inputs[0].to(a.dtype), a, b).to(output.dtype)

        return add_earlier

    def penalty(self) -> Tensor | None:
        if not self.earlier:
            return None
        layers = self.slot.layers
        losses = [orthogonality_loss(factors(layers[name])[0], a) for name, (a, _) in self.earlier.items()]
        return self.protocol.o_lora.strength * torch.stack(losses).sum()

    def begin_phase(self, phase: int) -> None:
        if phase > 0:  # the slot still holds what the phase before trained
            self._stack()

    def restore(self, phases: Sequence[PhaseFiles]) -> None:
        for earlier in phases[:-1]:
            self.slot.load(earlier.lora)
            self._stack()
        super().restore(phases)

    def _stack(self) -> None:
        scaling = self.protocol.lora.alpha / self.protocol.lora.rank
        for name, layer in self.slot.layers.items():
            a, b = (factor.detach().clone() for factor in factors(layer))
            self.earlier[name] = stack_lora(self.earlier.get(name), a, b * scaling)


BASELINES: dict[str, type[Baseline]] = {
    "ewc": ElasticWeightConsolidation,
    "lwf": LearningWithoutForgetting,
    "o-lora": OrthogonalLora,
}


def baseline_of(
    condition: Condition, protocol: Protocol, slot: LoraSlot, answer_logits: AnswerLogits, seed: int
) -> Baseline:
    """The baseline that a condition names."""
    return BASELINES.get(condition.baseline, Baseline)(protocol, slot, answer_logits, seed)


def read_tensors(path: Path, device: Any) -> dict[str, Tensor]:
    """A file of this run. Raises: RunFolderError."""
    try:
        return {name: tensor.to(device) for name, tensor in safetensors.torch.load(read_sealed(path)).items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise damaged_phase(path, f"{type(error).__name__}: {error}") from error


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

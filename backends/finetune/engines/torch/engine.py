"""The PyTorch engine: a base model, one LoRA by PEFT, the shared CRMA, and what a condition adds to them."""

import itertools
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn

from backends.finetune.engines.engine import RowScore, SpectralReport, StepReport
from backends.finetune.engines.optimizer import (
    check_scores,
    check_step,
    crma_groups,
    divergence,
    group_settings,
    rate_factor,
    trains_crma,
)
from backends.finetune.engines.torch import checkpoint as torch_checkpoint
from backends.finetune.engines.torch.answer_head import answer_logits
from backends.finetune.engines.torch.lora import LoraSlot
from backends.finetune.engines.torch.model import load_base, round_frozen_linears
from backends.finetune.engines.torch.unconstrained import (
    certificate_of_unconstrained,
    load_unconstrained,
    save_unconstrained,
    unconstrain,
)
from backends.finetune.engines.torch.world import shard_base, share, sum_gradients, summed, total
from backends.finetune.engines.world import SINGLE, World
from backends.finetune.methods.method import Method, Training
from backends.finetune.runs.checkpoint_file import damaged_phase, phase_state, read_checkpoint
from backends.finetune.runs.moments_file import read_moments, write_moments
from backends.finetune.runs.run_folder import PhaseFiles
from backends.finetune.tasks.encoding import IGNORED, Batch, rows_scored
from backends.finetune.tasks.job import Job
from backends.finetune.tasks.packing import check_packing, model_arguments
from backends.torch import AdapterState, CRMABackbone, StreamMoments, attach_crma
from backends.torch.decoder import find_decoder
from reference import AdapterConfig


class TorchEngine:
    """See :class:`backends.finetune.engines.engine.Engine`. Raises: ModelError if the folder cannot be loaded."""

    def __init__(self, job: Job, device: str, *, world: World = SINGLE, shard: bool = False) -> None:
        protocol, condition = self.protocol, self.condition = job.protocol, job.condition
        self.seed, self.world = job.seed, world
        self.device = torch.device(device)
        base = load_base(job.model, protocol, self.device, trainable=condition.trains == "full")
        self.backbone: CRMABackbone | None = None
        crma_size = 0
        if condition.crma != "none" or condition.raised_rank:
            backbone = self._attach(base)
            crma_size = sum(parameter.numel() for parameter in backbone.parameters())
            if condition.crma == "none":
                backbone.detach_from_model()
            else:
                self.backbone = backbone
                if condition.crma == "unconstrained":
                    unconstrain(backbone)
        self.slot: LoraSlot | None = None
        if condition.trains == "full":
            self.model: Any = base.requires_grad_(True)
        else:
            self.slot = LoraSlot(base, protocol.lora, extra=crma_size if condition.raised_rank else 0)
            self.model = self.slot.model
        self._allow_training(0)
        if shard:
            shard_base(self.model, find_decoder(base).blocks, set(self._trainables().values()))
        if protocol.packing:
            check_packing(self.model)
        if self._is_mixed() and self.slot is not None and not shard:  # FSDP wants one precision for what it shards
            round_frozen_linears(self.model)  # which computes under autocast from here on
        if protocol.gradient_checkpointing and self.slot is not None:
            self.model.enable_input_require_grads()
        self.method: Method | None = None
        if self.slot is not None:
            scaling = protocol.lora.alpha / protocol.lora.rank
            training = Training(self.slot, scaling, self._answer_logits, job.seed)
            self.method = condition.method(condition.settings(protocol), training)
        self.anchor: AdapterState | None = None
        self.moments: StreamMoments | None = None  # of the tasks so far, where the condition has a data budget
        self.fresh: AdapterState | None = None  # where each task begins with a new CRMA
        if self.backbone is not None and condition.trains_crma == "each-anew":
            self.fresh = self.backbone.state()
        self.phase = -1

    def _attach(self, base: Any) -> CRMABackbone:
        crma = self.protocol.crma
        return attach_crma(
            base,
            AdapterConfig(base.config.get_text_config().hidden_size, crma.streams, crma.rank, crma.iterations),
            basis=crma.basis_start,
            skip_directions=crma.skip_directions,
            gate_logit=crma.gate_logit,
            seed=self.seed,
        )

    # Training -------------------------------------------------------------------------------------------------------

    def begin_phase(self, phase: int, steps: int) -> None:
        if self.phase == 0 and phase == 1 and self.backbone is not None:
            self.anchor = self.backbone.state()
        if self.fresh is not None and self.backbone is not None:
            self.backbone.load_state(self.fresh)
        self.phase, self.steps = phase, steps
        if self.method is not None:
            self.method.begin_phase(phase)
        if self.slot is not None and (phase == 0 or self.condition.trains != "shared"):
            # the same in every condition of this draw
            self.slot.draw(1_000_003 * self.seed + phase + 333_331 * self.condition.draw)
        self._allow_training(phase)
        self.settings = group_settings(self.protocol, self.condition, phase)
        groups = self._groups()
        self.optimizer = torch.optim.AdamW(
            [{"params": groups[name], "lr": group.learning_rate} for name, group in self.settings.items()],
            weight_decay=0.0,
        )
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def start_from(self, files: PhaseFiles) -> None:
        assert self.slot is not None
        self.slot.load(files.lora)
        self._allow_training(self.phase)

    def step(self, batches: Sequence[Batch], index: int, memory: Batch | None = None) -> StepReport:
        answer_tokens = sum(batch.answer_tokens for batch in batches)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in batches:
            loss_sum = loss_sum + self._backward(batch, answer_tokens)
        groups = self._groups()
        sum_gradients(self.world, (parameter for group in groups.values() for parameter in group))
        penalty = None if self.method is None else self.method.penalty()
        if penalty is not None:  # after the sum: every process has the same penalty
            penalty.backward()
        if memory is not None:
            self._adjust(memory)
        norms = [nn.utils.clip_grad_norm_(groups[name], group.clip) for name, group in self.settings.items()]
        # One wait for the device: what is read is in one tensor.
        found = torch.stack([summed(self.world, loss_sum), *(norm.to(loss_sum) for norm in norms)]).tolist()
        report = StepReport(found[0] / answer_tokens, dict(zip(self.settings, found[1:], strict=True)))
        check_step(report, self.phase, index)
        factor = rate_factor(index, self.steps, self.protocol.warmup_steps)
        for group, settings in zip(self.optimizer.param_groups, self.settings.values(), strict=True):
            group["lr"] = settings.learning_rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._limit()
        return report

    def _adjust(self, memory: Batch) -> None:
        """What the method makes of the step's gradients, given those of ``memory``'s mean loss."""
        assert self.method is not None
        parameters = [parameter for group in self._groups().values() for parameter in group]
        own = _take_gradients(parameters)
        self._backward(memory, memory.answer_tokens)
        sum_gradients(self.world, parameters)
        of_memory = _take_gradients(parameters)
        for parameter, gradient in zip(parameters, self.method.adjusted(own, of_memory), strict=True):
            parameter.grad = gradient

    def _backward(self, batch: Batch, answer_tokens: int) -> Tensor:
        """Add the gradients of this process's share of ``batch``; returns its loss, summed over answer tokens, in
        float64 on the device, which is not waited for.
        """
        mine = share(self.world, len(batch.input_ids))
        counted = [row for row, counts in mine if counts]
        part = batch.rows(counted or [0])
        prepared = None if self.method is None else self.method.prepare(part)
        loss, logits = self._loss(part)
        extra = None if self.method is None else self.method.batch_loss(prepared, logits)
        weight = 1.0 if counted else 0.0  # a process without a row keeps the others company, for the sake of FSDP
        ((loss if extra is None else loss + extra) * (weight / answer_tokens)).backward()
        return weight * loss.detach().double()

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sum of the negative log-likelihoods of the answer tokens, and their logits."""
        logits, labels = self._answer_logits(batch)
        return nn.functional.cross_entropy(logits, labels, reduction="sum"), logits

    def _answer_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Float32 logits that predict the answer tokens, (tokens, vocabulary), and these tokens."""
        # Found on the host: for a mask on the device the host would wait.
        labels = batch.labels[:, 1:]
        counted = np.nonzero(labels != IGNORED)
        rows, columns, answers = (
            torch.from_numpy(values).to(self.device, non_blocking=True) for values in (*counted, labels[counted])
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_mixed()):
            logits = answer_logits(self.model, model_arguments(batch, self.device), rows, columns)
        return logits.float(), answers

    def _is_mixed(self) -> bool:
        return self.protocol.precision == "mixed" or (
            self.protocol.precision == "bfloat16" and self.condition.trains == "full"
        )

    def _limit(self) -> None:
        if self.backbone is None or self.anchor is None or not trains_crma(self.condition, self.phase):
            return
        budget = self.condition.limit(self.protocol.crma.displacement_budget)
        with divergence(self.phase):
            if self.condition.data_budget is not None:
                assert self.moments is not None  # taken at the end of the phase before, or read with it
                self.backbone.limit_data_displacement(self.anchor, self.moments, self.condition.data_budget)
            elif budget is not None:
                self.backbone.limit_displacement(self.anchor, budget)

    def finish_phase(self, phase: int, examples: Iterable[Batch]) -> None:
        if self.method is not None:
            self.method.finish_phase(phase, examples)
        if self.backbone is not None and self.condition.data_budget is not None:
            with divergence(phase):
                found = self._moments(self.backbone, examples)
            self.moments = found if self.moments is None else self.moments.joined(found)

    @torch.no_grad()
    def _moments(self, backbone: CRMABackbone, batches: Iterable[Batch]) -> StreamMoments:
        """Of all tokens of ``batches`` but the first of each text, with the state as it is now."""
        totals, count = torch.zeros((), dtype=torch.float64, device=self.device), 0
        for batch in batches:
            mine = share(self.world, len(batch.input_ids))
            part = batch.rows([row for row, _ in mine])
            counted = part.later_tokens * np.array([[counts] for _, counts in mine])
            with backbone.gather_moments(torch.from_numpy(counted)) as gathered:
                self._answer_logits(part)
            totals = totals + gathered.moments().totals.to(self.device)
            count += int(batch.later_tokens.sum())
        return StreamMoments(summed(self.world, totals), count)

    def spectrum(self) -> SpectralReport | None:
        if self.backbone is None:
            return None
        with divergence(self.phase):
            if self.condition.crma == "unconstrained":
                return SpectralReport.of(certificate_of_unconstrained(self.backbone), None)
            moved = seen = None
            if self.anchor is not None:
                moved = self.backbone.displacement(self.anchor)
                seen = self.moments and self.backbone.data_displacement(self.anchor, self.moments)
            return SpectralReport.of(self.backbone.certificate(), moved, seen)

    # Answers --------------------------------------------------------------------------------------------------------

    def answer_with(self, phase: int, files: PhaseFiles) -> None:
        if self.slot is not None and self.condition.trains == "per-task":
            self.slot.load(files.lora)
            self._allow_training(self.phase)
        if self.backbone is not None and self.condition.pinned:
            self._load_crma(self.backbone, files.crma)

    @torch.no_grad()
    def scores(self, batches: Sequence[Batch]) -> list[RowScore]:
        batches = [part for batch in batches for part in batch.parts(self._rows_scored(batch))]
        sizes = [(batch.labels[:, 1:] != IGNORED).sum(axis=1).tolist() for batch in batches]
        first = [0, *itertools.accumulate(map(len, sizes))]
        losses, greedy = np.zeros(first[-1]), np.zeros(first[-1])  # of this process's batches; the others' are added
        for index, counts in share(self.world, len(batches)):
            logits, labels = self._answer_logits(batches[index])
            if not counts:
                continue
            loss = nn.functional.cross_entropy(logits, labels, reduction="none").double().split(sizes[index])
            right = (logits.argmax(-1) == labels).split(sizes[index])
            rows = slice(first[index], first[index + 1])
            losses[rows] = torch.stack([row.sum() for row in loss]).cpu()
            greedy[rows] = torch.stack([row.all() for row in right]).cpu()
        found = total(self.world, [*losses.tolist(), *greedy.tolist()], self.device)
        check_scores(found, self.phase)
        return [
            RowScore(loss, size, bool(hits))
            for loss, size, hits in zip(found[: first[-1]], itertools.chain(*sizes), found[first[-1] :], strict=True)
        ]

    def _rows_scored(self, batch: Batch) -> int:
        answers = int((batch.labels[:, 1:] != IGNORED).sum(axis=1).max())
        vocabulary = self.model.config.get_text_config().vocab_size
        return rows_scored(self.protocol.batch_size, answers, vocabulary)

    def without_crma(self) -> AbstractContextManager[None]:
        return nullcontext() if self.backbone is None else self.backbone.disabled()

    def without_lora(self) -> AbstractContextManager[None]:
        return nullcontext() if self.slot is None else self.slot.disabled()

    # Parameters -----------------------------------------------------------------------------------------------------

    def _allow_training(self, phase: int) -> None:
        if self.slot is not None:
            for parameter in self.slot.parameters().values():
                parameter.requires_grad_(True)
        if self.backbone is not None:
            self.backbone.requires_grad_(trains_crma(self.condition, phase))  # get_peft_model freezes it
            trained = crma_groups(self.condition, phase)
            for name, parameters in self.backbone.parameter_groups().items():
                for parameter in parameters:
                    parameter.requires_grad_(name in trained)

    def _groups(self) -> dict[str, list[nn.Parameter]]:
        groups: dict[str, list[nn.Parameter]] = {}
        if self.slot is None:
            groups["full"] = list(self.model.parameters())
        else:
            groups["lora"] = list(self.slot.parameters().values())
        if self.backbone is not None and (trained := crma_groups(self.condition, max(self.phase, 0))):
            every = self.backbone.parameter_groups()
            groups |= {name: every[name] for name in trained}
        return groups

    def _trainables(self) -> dict[str, nn.Parameter]:
        own = dict(self.model.named_parameters()) if self.slot is None else self.slot.parameters()
        crma = {} if self.backbone is None else dict(self.backbone.named_parameters(prefix="crma"))
        return own | crma

    def parameter_counts(self) -> dict[str, int]:
        if self.slot is None:
            return {"full": sum(parameter.numel() for parameter in self.model.parameters())}
        counts = {"lora": self.slot.count()}
        if self.backbone is not None:
            counts["crma"] = sum(parameter.numel() for parameter in self.backbone.parameters())
        return counts

    def memory_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return int(psutil.Process().memory_info().rss)

    # Files ----------------------------------------------------------------------------------------------------------

    # One process writes, and the others wait until the files are there.

    def save_phase(self, phase: int, files: PhaseFiles) -> None:
        if self.world.rank == 0:
            self._save_phase(files)
        self.world.barrier()

    def _save_phase(self, files: PhaseFiles) -> None:
        if self.slot is None:
            torch_checkpoint.write_tensors(files.model, self._trainables())
        else:
            self.slot.save(files.lora)
        if self.method is not None and self.condition.method.keeps_file:
            torch_checkpoint.write_tensors(files.consolidated, self.method.state())
        if self.backbone is not None and self.condition.crma == "unconstrained":
            save_unconstrained(files.mixing, self.backbone.finite_state())
        elif self.backbone is not None:
            self.backbone.save(files.crma)
        if self.moments is not None:
            write_moments(files.moments, self.moments.totals.cpu().numpy(), self.moments.tokens)

    def restore(self, phases: Sequence[PhaseFiles]) -> None:
        if not phases:
            return
        self.phase = len(phases) - 1
        if self.method is not None:
            self.method.restore([files.lora for files in phases])
            if self.condition.method.keeps_file:
                self.method.load_state(torch_checkpoint.read_tensors(phases[-1].consolidated, self.device))
        if self.slot is None:
            self._load_model(phases[-1].model)
        if self.backbone is None:
            return
        if self.condition.crma == "unconstrained":
            self.backbone.load_state(load_unconstrained(phases[-1].mixing))
        else:
            self.continue_from(phases[0], phases[-1])
            self.anchor = self.anchor if len(phases) > 1 else None

    def continue_from(self, anchor: PhaseFiles, now: PhaseFiles) -> None:
        if self.backbone is not None:
            self._load_crma(self.backbone, anchor.crma)
            self.anchor = self.backbone.state()
            self._load_crma(self.backbone, now.crma)
        if self.condition.data_budget is not None:
            totals, count = read_moments(now.moments)
            self.moments = StreamMoments(torch.from_numpy(totals).to(self.device), count)

    def _load_crma(self, backbone: CRMABackbone, path: Path) -> None:
        with phase_state(path):
            backbone.load(path)  # also checks that the file is this model's

    @torch.no_grad()
    def _load_model(self, path: Path) -> None:
        tensors = torch_checkpoint.read_tensors(path, self.device)
        for name, parameter in self._trainables().items():
            if name not in tensors or tensors[name].shape != parameter.shape:
                raise damaged_phase(path, f"{name} missing or of another shape")
            parameter.copy_(tensors[name])

    def save_checkpoint(self, path: Path, progress: dict[str, Any]) -> None:
        if self.world.rank == 0:
            progress = progress | {"phase": self.phase}
            torch_checkpoint.save_checkpoint(path, self._trainables(), self.optimizer, progress)
        self.world.barrier()

    def load_checkpoint(self, path: Path, phase: int) -> dict[str, Any] | None:
        if (found := read_checkpoint(path, phase)) is None:
            return None
        data, progress = found
        torch_checkpoint.load_checkpoint(data, path, self._trainables(), self.optimizer)
        return progress


def _take_gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The gradients, zeros where there are none, which are gone from the parameters then."""
    taken = [torch.zeros_like(value) if value.grad is None else value.grad for value in parameters]
    for value in parameters:
        value.grad = None
    return taken

"""The JAX engine: a frozen decoder, LoRA, and the shared CRMA, on one device or a mesh of them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil  # type: ignore[import-untyped]

from backends.architecture import architecture_digest, describe
from backends.finetune.engines.engine import RowScore, SpectralReport, StepReport
from backends.finetune.engines.jax import checkpoint as jax_checkpoint
from backends.finetune.engines.jax.placement import Placement
from backends.finetune.engines.jax.step import (
    Compute,
    Trainables,
    answer_scores,
    padded,
    stack_of,
    stream_totals,
    train_step,
)
from backends.finetune.engines.optimizer import (
    check_scores,
    check_step,
    divergence,
    group_settings,
    rate_factor,
    trains_crma,
)
from backends.finetune.engines.world import SINGLE
from backends.finetune.methods.frozen import raised_rank
from backends.finetune.methods.lwf import LearningWithoutForgetting
from backends.finetune.models.check_fits import check_fits
from backends.finetune.models.folder import load_config
from backends.finetune.runs.checkpoint_file import damaged_phase, phase_state, read_checkpoint
from backends.finetune.runs.moments_file import read_moments, write_moments
from backends.finetune.runs.run_folder import PhaseFiles
from backends.finetune.tasks.encoding import Batch
from backends.finetune.tasks.job import Job
from backends.jax import CRMAAdapter
from backends.jax.certificates import certificate, limit_displacement
from backends.jax.data_displacement import StreamMoments, data_displacement, limit_data_displacement, moments_of
from backends.jax.decoder import load_decoder
from backends.jax.decoder.weights import read_layers
from backends.jax.lora import Lora, init_lora, load_lora, save_lora, target_projections
from backends.jax.state import load_state, save_state
from reference import AdapterConfig
from reference.errors import ConfigError, ModelError, ProtocolError


class JaxEngine:
    """See :class:`backends.finetune.engines.engine.Engine`. Raises: ModelError if the folder cannot be loaded."""

    def __init__(self, job: Job, placement: Placement) -> None:
        protocol, condition = self.protocol, self.condition = job.protocol, job.condition
        model_path = self.model_path = job.model
        self.seed, self.placement, self.world = job.seed, placement, SINGLE
        check_fits(model_path, protocol)
        self.dtype = "bfloat16" if protocol.precision == "bfloat16" else "float32"
        self.matmul_dtype = None if protocol.precision == "float32" else "bfloat16"
        self.params, self.config = load_decoder(
            model_path, dtype=self.dtype, device=placement.where, matmul_dtype=self.matmul_dtype
        )
        described = load_config(model_path).get_text_config()
        self.identity = {"base_model": describe(described), "base_model_sha256": architecture_digest(described)}
        try:
            self.paths = target_projections(self.config, protocol.lora.target_modules)
        except ConfigError as error:
            field = f"lora.{error.field}"
            raise ProtocolError(field, got=error.got, allowed=error.allowed, remedy=error.remedy) from error
        self.rank = self._raised_rank() if condition.raised_rank else protocol.lora.rank
        self.lora: Lora = {}
        self.crma: Trainables = {}
        if condition.crma != "none":
            self._set_stack(self._start_stack())
        self.anchor: CRMAAdapter | None = None
        self.moments: StreamMoments | None = None  # of the tasks so far, where the condition has a data budget
        self.teacher: Lora | None = None  # where a step is held near the answers of another LoRA,
        self.distillation: tuple[float, float] | None = None  # its strength and temperature
        self.phase = -1
        self._set_compute(0)

    # Data -----------------------------------------------------------------------------------------------------------

    def _on_device(self, batch: Batch) -> Any:
        rows = self.placement.rows(self.protocol.batch_size)
        return self.placement.batch(padded(batch, rows, self.protocol.max_tokens))

    def _parts(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """In batches as small as those of a step, for which alone the programs are compiled."""
        return (part for batch in batches for part in batch.parts(self.protocol.batch_size))

    # Training -------------------------------------------------------------------------------------------------------

    def begin_phase(self, phase: int, steps: int) -> None:
        if self.phase == 0 and phase == 1 and self.crma:
            self.anchor = self._stack()
        if self.condition.trains_crma == "each-anew":
            self._set_stack(self._start_stack())
        self.phase = phase
        method = self.condition.method
        if phase > 0 and issubclass(method, LearningWithoutForgetting):
            self.teacher = jax.tree.map(jnp.zeros_like, self.lora) if method.of_base else self.lora
            settings = self.condition.settings(self.protocol)
            self.distillation = settings.strength, settings.temperature
        if phase == 0 or self.condition.trains == "per-task":
            self.lora = self._fresh_lora(phase)
        self._set_compute(phase)
        self.state = self.placement.replicated(self.compute.optimizer.init(self._trainables()))
        self.steps = steps

    def start_from(self, files: PhaseFiles) -> None:
        self._load_lora(files.lora)

    def _set_compute(self, phase: int) -> None:
        self.settings = group_settings(self.protocol, self.condition, phase)
        self.compute = Compute(
            self.config,
            self.protocol.crma.iterations,
            self.protocol.lora.alpha / self.protocol.lora.rank,
            "bfloat16" if self.protocol.precision == "mixed" else None,
            tuple((name, group.clip) for name, group in self.settings.items()),
            self.placement.whole,
            self.protocol.gradient_checkpointing,
        )

    def step(self, batches: Sequence[Batch], index: int, memory: Batch | None = None) -> StepReport:
        (batch,) = batches
        factor = rate_factor(index, self.steps, self.protocol.warmup_steps)
        # as arrays, so that another rate compiles nothing
        rates = {name: jnp.float32(group.learning_rate * factor) for name, group in self.settings.items()}
        given = self.teacher, self.state, self._on_device(batch), self.placement.replicated(rates)
        taking_part = self._trainables(), self._still()
        result = train_step(self.compute, self.distillation, self.params, *taking_part, *given)
        norms = {name: float(result.norms[name]) for name in self.settings}
        report = StepReport(float(result.loss), norms)
        check_step(report, self.phase, index)
        self._set_trainables(result.trainables)
        self.state = result.state
        self._limit()
        return report

    def _limit(self) -> None:
        if self.anchor is None or not trains_crma(self.condition, self.phase):
            return
        budget, epsilon = self.condition.limit(self.protocol.crma.displacement_budget), self.condition.data_budget
        with divergence(self.phase):
            if epsilon is not None:
                assert self.moments is not None  # taken at the end of the phase before, or read with it
                self._set_stack(limit_data_displacement(self.anchor, self._stack(), self.moments, epsilon)[0])
            elif budget is not None:
                self._set_stack(limit_displacement(self.anchor, self._stack(), budget)[0])

    def spectrum(self) -> SpectralReport | None:
        if not self.crma:
            return None
        with divergence(self.phase):
            bounds, seen = certificate(self._stack(), self.anchor), None
            if self.anchor is not None and self.moments is not None:
                seen = data_displacement(self.anchor, self._stack(), self.moments)
        return SpectralReport.of(bounds, bounds.displacement, seen)

    def finish_phase(self, phase: int, examples: Iterable[Batch]) -> None:
        if self.condition.data_budget is None:  # no method runs here
            return
        for batch in self._parts(examples):
            totals = stream_totals(self.compute, self.params, self._answering(), self._on_device(batch))
            with divergence(phase):
                found = moments_of(totals, int(batch.later_tokens.sum()))
            self.moments = found if self.moments is None else self.moments.joined(found)

    # Answers --------------------------------------------------------------------------------------------------------

    def answer_with(self, phase: int, files: PhaseFiles) -> None:
        if self.condition.trains == "per-task":
            self._load_lora(files.lora)
        if self.crma and self.condition.pinned:
            self._load_crma(files.crma)

    def scores(self, batches: Sequence[Batch]) -> list[RowScore]:
        scored = [score for part in self._parts(batches) for score in self._scores(part)]
        check_scores((score.loss for score in scored), self.phase)
        return scored

    def _scores(self, batch: Batch) -> Iterator[RowScore]:
        scored = answer_scores(self.compute, self.params, self._answering(), self._on_device(batch))
        losses, right, counted = (np.asarray(array)[: len(batch.labels)] for array in scored)
        for row, answer in enumerate(counted):
            loss = losses[row, answer].astype(np.float64).sum()
            yield RowScore(float(loss), int(answer.sum()), bool(right[row, answer].all()))

    @contextmanager
    def without_crma(self) -> Iterator[None]:
        crma, self.crma = self.crma, {}
        try:
            yield
        finally:
            self.crma = crma

    @contextmanager
    def without_lora(self) -> Iterator[None]:
        lora, self.lora = self.lora, jax.tree.map(jnp.zeros_like, self.lora)
        try:
            yield
        finally:
            self.lora = lora

    # Parameters -----------------------------------------------------------------------------------------------------

    def _fresh_lora(self, phase: int) -> Lora:
        """The same seed and phase give the same LoRA in every condition."""
        rng = np.random.default_rng([self.seed, phase] + [self.condition.draw] * (self.condition.draw > 0))
        drawn: Lora = self.placement.replicated(init_lora(self.config, self.paths, self.rank, rng))
        return drawn

    def _raised_rank(self) -> int:
        """LoRA's rank, raised until it has at least as many parameters as MODULAR's LoRA and CRMA."""
        crma, rank = self.protocol.crma, self.protocol.lora.rank
        of_crma = crma.streams**2 + 1 + crma.streams * crma.rank * self.config.hidden_size
        per_rank = sum(sum(self.config.projections[path]) for path in self.paths)
        return raised_rank(rank, of_crma, per_rank)  # both times the number of layers

    def _start_stack(self) -> CRMAAdapter:
        """The same start values as ``attach_crma`` draws."""
        crma = self.protocol.crma
        writers = None
        if crma.basis_start == "principal":
            # from the files, since the parameters hold them rounded in mixed precision
            writers = read_layers(self.model_path, self.config, "mlp.down_proj.weight", self.dtype).astype(np.float64)
        sizes = AdapterConfig(self.config.hidden_size, crma.streams, crma.rank, crma.iterations)
        return CRMAAdapter.init(
            sizes,
            self.seed,
            self.config.layers,
            writers=writers,
            skip_directions=crma.skip_directions,
            gate_logit=crma.gate_logit,
        )

    def _stack(self) -> CRMAAdapter:
        return stack_of(self.crma, self.protocol.crma.iterations)

    def _set_stack(self, stack: CRMAAdapter) -> None:
        parts = {"basis": stack.basis, "mixing": stack.mix_logits, "gate": stack.gate_logit}
        self.crma = self.placement.replicated(parts)

    def _answering(self) -> Trainables:
        return {"lora": self.lora, **self.crma}

    def _trainables(self) -> Trainables:
        return {name: group for name, group in self._answering().items() if name in self.settings}

    def _still(self) -> Trainables:
        return {name: group for name, group in self._answering().items() if name not in self.settings}

    def _set_trainables(self, trainables: Trainables) -> None:
        self.lora = trainables["lora"]
        self.crma = {name: trainables.get(name, group) for name, group in self.crma.items()}

    def parameter_counts(self) -> dict[str, int]:
        groups = {"lora": self.lora} | ({"crma": self.crma} if self.crma else {})
        return {name: sum(leaf.size for leaf in jax.tree.leaves(group)) for name, group in groups.items()}

    def memory_bytes(self) -> int:
        (device, *_) = jax.tree.leaves(self.params)[0].devices()
        statistics = device.memory_stats() or {}
        return int(statistics.get("peak_bytes_in_use") or psutil.Process().memory_info().rss)

    # Files ----------------------------------------------------------------------------------------------------------

    def save_phase(self, phase: int, files: PhaseFiles) -> None:
        alpha, rank = self.protocol.lora.alpha, self.protocol.lora.rank
        alpha_here = alpha if self.rank == rank else alpha * self.rank / rank  # alpha / r stays what the protocol says
        save_lora(files.lora, self.lora, alpha_here, str(self.model_path))
        if self.crma:
            save_state(files.crma, self._stack(), **self.identity)
        if self.moments is not None:
            write_moments(files.moments, *self.moments)

    def restore(self, phases: Sequence[PhaseFiles]) -> None:
        if not phases:
            return
        self.phase = len(phases) - 1
        self._load_lora(phases[-1].lora)
        if self.crma:
            self.continue_from(phases[0], phases[-1])
            self.anchor = self.anchor if len(phases) > 1 else None

    def continue_from(self, anchor: PhaseFiles, now: PhaseFiles) -> None:
        if self.crma:
            self._load_crma(anchor.crma)
            self.anchor = self._stack()
            self._load_crma(now.crma)
        if self.condition.data_budget is not None:
            self.moments = StreamMoments(*read_moments(now.moments))

    def _load_lora(self, folder: Path) -> None:
        try:
            factors, _ = load_lora(folder, self.config)
        except ModelError as error:
            raise damaged_phase(folder, str(error)) from error
        if (got := _shapes(factors)) != (expected := _shapes(self.lora or self._fresh_lora(0))):
            raise damaged_phase(folder, f"factors {got}, not {expected}")
        self.lora = self.placement.replicated(factors)

    def _load_crma(self, path: Path) -> None:
        with phase_state(path):
            content = load_state(path)
        own = {**self.identity, "iterations": self.protocol.crma.iterations, "shapes": _shapes(self._stack())}
        found = {
            "base_model": content.base_model,
            "base_model_sha256": content.base_model_sha256,
            "iterations": content.stack.iterations,
            "shapes": _shapes(content.stack),
        }
        if wrong := [field for field in own if found[field] != own[field]]:
            raise damaged_phase(path, f"{wrong[0]} {found[wrong[0]]}, not {own[wrong[0]]}")
        self._set_stack(content.stack)

    def save_checkpoint(self, path: Path, progress: dict[str, Any]) -> None:
        tree = {"parameter": self._trainables(), "optimizer": self.state}
        jax_checkpoint.save_checkpoint(path, tree, progress | {"phase": self.phase})

    def load_checkpoint(self, path: Path, phase: int) -> dict[str, Any] | None:
        if (found := read_checkpoint(path, phase)) is None:
            return None
        data, progress = found
        tree = {"parameter": self._trainables(), "optimizer": self.state}
        loaded = jax_checkpoint.load_checkpoint(data, path, tree)
        self._set_trainables(loaded["parameter"])
        self.state = loaded["optimizer"]
        return progress


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: leaf.shape for name, leaf in jax_checkpoint.named(tree).items()}

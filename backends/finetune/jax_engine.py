"""The JAX engine: a frozen decoder, LoRA, and the shared CRMA, on one device or a mesh of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from transformers import AutoConfig

from backends.architecture import architecture_digest, describe
from backends.finetune import jax_checkpoint
from backends.finetune.base_model import load_errors, load_tokenizer
from backends.finetune.checkpoint_file import damaged_phase, read_progress
from backends.finetune.encoding import IGNORED, Batch, EncodedExample, collate, encode, padding_id
from backends.finetune.engine import SpectralReport, StepReport
from backends.finetune.jax_placement import Placement
from backends.finetune.jax_step import (
    Compute,
    Trainables,
    answer_loss,
    padded,
    rate_arrays,
    stack_of,
    train_step,
)
from backends.finetune.optimizer import check_holdout, check_step, diverged, group_settings, rate_factor
from backends.finetune.protocol import Condition, Protocol
from backends.finetune.tasks import Example
from backends.jax import CRMAAdapter
from backends.jax.certificates import certificate, limit_displacement
from backends.jax.decoder import load_decoder
from backends.jax.lora import Lora, init_lora, load_lora, save_lora, target_projections
from backends.jax.state import load_state, save_state
from reference import AdapterConfig
from reference.errors import ConfigError, ModelError, NonFiniteError, ProtocolError, StateFileError


class JaxEngine:
    """See :class:`backends.finetune.engine.Engine`. Raises: ModelError if the folder cannot be loaded."""

    def __init__(
        self, model_path: Path, protocol: Protocol, condition: Condition, seed: int, placement: Placement
    ) -> None:
        self.model_path, self.protocol, self.condition, self.seed = model_path, protocol, condition, seed
        self.placement = placement
        self.tokenizer = load_tokenizer(model_path)
        dtype = "bfloat16" if protocol.precision == "bfloat16" else "float32"
        self.params, self.config = load_decoder(model_path, dtype=dtype, device=placement.where)
        with load_errors(model_path):
            described: Any = AutoConfig.from_pretrained(model_path, local_files_only=True).get_text_config()
        self.identity = {"base_model": describe(described), "base_model_sha256": architecture_digest(described)}
        try:
            self.paths = target_projections(self.config, protocol.lora.target_modules)
        except ConfigError as error:
            field = f"lora.{error.field}"
            raise ProtocolError(field, got=error.got, allowed=error.allowed, remedy=error.remedy) from error
        self.loras: dict[str, Lora] = {}
        self.crma: Trainables = {}
        if condition == "modular":
            self._set_stack(self._start_stack())
        self.anchor: CRMAAdapter | None = None
        self.phase = -1

    # Data -----------------------------------------------------------------------------------------------------------

    def encode(self, examples: Sequence[Example], task: str) -> list[EncodedExample]:
        return encode(examples, self.tokenizer, self.protocol.max_tokens, task=task)

    def batch(self, examples: Sequence[EncodedExample]) -> Batch:
        return collate(examples, padding_id(self.tokenizer))

    def _on_device(self, batch: Batch) -> Any:
        rows = self.placement.rows(self.protocol.batch_size)
        return self.placement.batch(padded(batch, rows, self.protocol.max_tokens))

    # Training -------------------------------------------------------------------------------------------------------

    def begin_phase(self, phase: int, steps: int) -> None:
        self._enter(phase)
        self.settings = group_settings(self.protocol, phase, crma=bool(self.crma))
        self.compute = Compute(
            self.config,
            self.protocol.crma.iterations,
            self.protocol.lora.alpha / self.protocol.lora.rank,
            "bfloat16" if self.protocol.precision == "mixed" else None,
            tuple((name, group.clip) for name, group in self.settings.items()),
            self.placement.whole,
        )
        self.state = self.placement.replicated(self.compute.optimizer.init(self._trainables(phase)))
        self.steps = steps

    def step(self, batch: Batch, index: int) -> StepReport:
        factor = rate_factor(index, self.steps, self.protocol.warmup_steps)
        rates = rate_arrays({name: group.learning_rate * factor for name, group in self.settings.items()})
        given = self._trainables(self.phase), self.state, self._on_device(batch), self.placement.replicated(rates)
        result = train_step(self.compute, self.params, *given)
        norms = {name: float(result.norms[name]) for name in self.settings}
        report = StepReport(float(result.loss), norms)
        check_step(report, self.phase, index)
        self._set_trainables(result.trainables)
        self.state = result.state
        budget = self.protocol.crma.displacement_budget
        if self.anchor is not None and budget is not None:
            try:
                self._set_stack(limit_displacement(self.anchor, self._stack(), budget)[0])
            except NonFiniteError as error:
                raise diverged(error, self.phase) from error
        return report

    def spectrum(self) -> SpectralReport | None:
        if not self.crma:
            return None
        try:
            bounds = certificate(self._stack(), self.anchor)
        except NonFiniteError as error:
            raise diverged(error, self.phase) from error
        return SpectralReport(
            norm_max=float(bounds.mixing_norm.max()),
            adapter_max=float(bounds.largest.max()),
            adapter_min=float(bounds.smallest.min()),
            displacement_max=None if bounds.displacement is None else float(bounds.displacement.max()),
        )

    def holdout_loss(self, phase: int, batches: Sequence[Batch]) -> float:
        total, tokens = 0.0, 0
        for batch in batches:
            total += float(answer_loss(self.compute, self.params, self._trainables(phase), self._on_device(batch)))
            tokens += int((batch.labels[:, 1:] != IGNORED).sum())
        check_holdout(total, phase, self.phase)
        return total / tokens

    # Parameters -----------------------------------------------------------------------------------------------------

    def _name(self, phase: int) -> str:
        return "shared" if self.condition == "naive" else f"task-{phase}"

    def _enter(self, phase: int) -> None:
        """Make the LoRA of ``phase`` the one that trains, drawing it if need be."""
        if self.phase == 0 and phase == 1 and self.crma:
            self.anchor = self._stack()
        self.phase = phase
        if self._name(phase) not in self.loras:
            # The same seed and phase give the same LoRA in every condition.
            rng = np.random.default_rng([self.seed, phase])
            drawn = init_lora(self.config, self.paths, self.protocol.lora.rank, rng)
            self.loras[self._name(phase)] = self.placement.replicated(drawn)

    def _start_stack(self) -> CRMAAdapter:
        """The same start values as ``attach_crma`` draws."""
        crma = self.protocol.crma
        writers = None
        if crma.basis_start == "principal":
            writers = np.asarray(self.params["layers"]["mlp.down_proj.weight"], np.float64)
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

    def _trainables(self, phase: int) -> Trainables:
        return {"lora": self.loras[self._name(phase)], **self.crma}

    def _set_trainables(self, trainables: Trainables) -> None:
        self.loras[self._name(self.phase)] = trainables["lora"]
        self.crma = {name: trainables[name] for name in self.crma}

    def parameter_counts(self) -> dict[str, int]:
        groups = {"lora": self.loras[self._name(self.phase)]} | ({"crma": self.crma} if self.crma else {})
        return {name: sum(leaf.size for leaf in jax.tree.leaves(group)) for name, group in groups.items()}

    # Files ----------------------------------------------------------------------------------------------------------

    def save_phase(self, phase: int, lora: Path, crma: Path) -> None:
        save_lora(lora, self.loras[self._name(phase)], self.protocol.lora.alpha, str(self.model_path))
        if self.crma:
            save_state(crma, self._stack(), **self.identity)

    def restore_phase(self, phase: int, lora: Path, crma: Path) -> None:
        self._enter(phase)
        try:
            factors, _ = load_lora(lora, self.config)
        except ModelError as error:
            raise damaged_phase(lora, str(error)) from error
        if (got := _shapes(factors)) != (expected := _shapes(self.loras[self._name(phase)])):
            raise damaged_phase(lora, f"factors {got}, not {expected}")
        self.loras[self._name(phase)] = self.placement.replicated(factors)
        if self.crma:
            content = load_state(crma)
            own = {**self.identity, "iterations": self.protocol.crma.iterations, "shapes": _shapes(self._stack())}
            found = {
                "base_model": content.base_model,
                "base_model_sha256": content.base_model_sha256,
                "iterations": content.stack.iterations,
                "shapes": _shapes(content.stack),
            }
            if wrong := [field for field in own if found[field] != own[field]]:
                raise StateFileError(
                    str(crma),
                    got=f"{wrong[0]} {found[wrong[0]]}",
                    allowed=f"{own[wrong[0]]}, as this run has it",
                    remedy="restore the file from a copy, or start again in another --out",
                )
            self._set_stack(content.stack)

    def save_checkpoint(self, path: Path, progress: dict[str, Any]) -> None:
        tree = {"parameter": self._trainables(self.phase), "optimizer": self.state}
        jax_checkpoint.save_checkpoint(path, tree, progress | {"phase": self.phase})

    def load_checkpoint(self, path: Path, phase: int) -> dict[str, Any] | None:
        progress = read_progress(path)
        if progress is None or progress["phase"] != phase:
            return None
        tree = {"parameter": self._trainables(self.phase), "optimizer": self.state}
        loaded = jax_checkpoint.load_checkpoint(path, tree)
        self._set_trainables(loaded["parameter"])
        self.state = loaded["optimizer"]
        return progress


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}

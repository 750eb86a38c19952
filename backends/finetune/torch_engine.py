"""The PyTorch engine: a frozen base model, LoRA by PEFT, and the shared CRMA, on one device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from backends.atomic import atomic_write
from backends.finetune import torch_checkpoint
from backends.finetune.base_model import load_errors, load_tokenizer
from backends.finetune.checkpoint_file import damaged_phase, read_progress
from backends.finetune.encoding import IGNORED, Batch, EncodedExample, collate, encode, padding_id
from backends.finetune.engine import SpectralReport, StepReport
from backends.finetune.optimizer import check_holdout, check_step, diverged, group_settings, rate_factor
from backends.finetune.protocol import Condition, Protocol
from backends.finetune.tasks import Example
from backends.torch import AdapterState, attach_crma
from reference import AdapterConfig
from reference.errors import NonFiniteError, ProtocolError


class TorchEngine:
    """See :class:`backends.finetune.engine.Engine`. Raises: ModelError if the folder cannot be loaded."""

    def __init__(self, model_path: Path, protocol: Protocol, condition: Condition, seed: int, device: str) -> None:
        self.protocol, self.condition, self.seed, self.device = protocol, condition, seed, torch.device(device)
        self.tokenizer = load_tokenizer(model_path)
        with load_errors(model_path):
            base: Any = AutoModelForCausalLM.from_pretrained(
                model_path,
                dtype=torch.bfloat16 if protocol.precision == "bfloat16" else torch.float32,
                attn_implementation=_attention(model_path, device),
                local_files_only=True,
            )
        self.model = base.to(self.device).eval().requires_grad_(False)
        crma = protocol.crma
        self.backbone = None
        if condition == "modular":
            self.backbone = attach_crma(
                self.model,
                AdapterConfig(base.config.hidden_size, crma.streams, crma.rank, crma.iterations),
                basis=crma.basis_start,
                skip_directions=crma.skip_directions,
                gate_logit=crma.gate_logit,
                seed=seed,
            )
        self.anchor: AdapterState | None = None
        self.phase = -1

    # Data -----------------------------------------------------------------------------------------------------------

    def encode(self, examples: Sequence[Example], task: str) -> list[EncodedExample]:
        return encode(examples, self.tokenizer, self.protocol.max_tokens, task=task)

    def batch(self, examples: Sequence[EncodedExample]) -> Batch:
        return collate(examples, padding_id(self.tokenizer))

    # Training -------------------------------------------------------------------------------------------------------

    def begin_phase(self, phase: int, steps: int) -> None:
        self._enter(phase)
        groups = self._groups()
        self.settings = group_settings(self.protocol, phase, crma=self.backbone is not None)
        self.optimizer = torch.optim.AdamW(
            [{"params": groups[name], "lr": group.learning_rate} for name, group in self.settings.items()],
            weight_decay=0.0,
        )
        self.steps = steps

    def step(self, batch: Batch, index: int) -> StepReport:
        groups = self._groups()
        loss, answer_tokens = self._loss(batch)
        (loss / answer_tokens).backward()
        norms = {
            name: float(nn.utils.clip_grad_norm_(groups[name], group.clip)) for name, group in self.settings.items()
        }
        report = StepReport(loss.item() / answer_tokens, norms)
        check_step(report, self.phase, index)
        factor = rate_factor(index, self.steps, self.protocol.warmup_steps)
        for group, settings in zip(self.optimizer.param_groups, self.settings.values(), strict=True):
            group["lr"] = settings.learning_rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        budget = self.protocol.crma.displacement_budget
        if self.backbone is not None and self.anchor is not None and budget is not None:
            try:
                self.backbone.limit_displacement(self.anchor, budget)
            except NonFiniteError as error:
                raise diverged(error, self.phase) from error
        return report

    def _loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Sum of the negative log-likelihoods of the answer tokens, and how many there are."""
        input_ids, mask, labels = (
            torch.from_numpy(array).to(self.device) for array in (batch.input_ids, batch.attention_mask, batch.labels)
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.protocol.precision == "mixed"):
            logits = self.model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        counted = labels[:, 1:] != IGNORED
        loss = nn.functional.cross_entropy(logits[counted].float(), labels[:, 1:][counted], reduction="sum")
        return loss, int(counted.sum())

    def spectrum(self) -> SpectralReport | None:
        if self.backbone is None:
            return None
        try:
            bounds = self.backbone.certificate()
        except NonFiniteError as error:
            raise diverged(error, self.phase) from error
        displacement = None if self.anchor is None else float(self.backbone.displacement(self.anchor).max())
        return SpectralReport(
            norm_max=float(bounds.mixing_norm.max()),
            adapter_max=float(bounds.largest.max()),
            adapter_min=float(bounds.smallest.min()),
            displacement_max=displacement,
        )

    @torch.no_grad()
    def holdout_loss(self, phase: int, batches: Sequence[Batch]) -> float:
        self.model.set_adapter(self._adapter_name(phase))
        total, tokens = 0.0, 0
        for batch in batches:
            loss, answer_tokens = self._loss(batch)
            total, tokens = total + float(loss), tokens + answer_tokens
        self._train_only_this_phase()
        check_holdout(total, phase, self.phase)
        return total / tokens

    # Parameters -----------------------------------------------------------------------------------------------------

    def _adapter_name(self, phase: int) -> str:
        return "shared" if self.condition == "naive" else f"task-{phase}"

    def _enter(self, phase: int) -> None:
        """Make the LoRA of ``phase`` the active one, creating it if need be."""
        if self.phase == 0 and phase == 1 and self.backbone is not None:
            self.anchor = self.backbone.state()
        self.phase = phase
        name = self._adapter_name(phase)
        if name not in getattr(self.model, "peft_config", {}):
            lora = self.protocol.lora
            config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.target_modules)
            # The same seed and phase give the same LoRA in every condition; the caller's generator is left alone.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1_000_003 * self.seed + phase)
                self._add_lora(name, config)
        self._train_only_this_phase()

    def _add_lora(self, name: str, config: LoraConfig) -> None:
        try:
            if hasattr(self.model, "peft_config"):
                self.model.add_adapter(name, config)
            else:
                self.model = get_peft_model(self.model, config, adapter_name=name)
        except ValueError as error:
            raise ProtocolError(
                "lora.target_modules",
                got=f"{config.target_modules!r} ({error})",
                allowed='names of linear layers in this model, or "all-linear"',
                remedy='use "all-linear"',
            ) from error

    def _train_only_this_phase(self) -> None:
        self.model.set_adapter(self._adapter_name(self.phase))
        if self.backbone is not None:
            self.backbone.requires_grad_(True)  # get_peft_model freezes it

    def _groups(self) -> dict[str, list[nn.Parameter]]:
        groups = {"lora": list(self._lora_parameters().values())}
        return groups if self.backbone is None else groups | self.backbone.parameter_groups()

    def _lora_parameters(self) -> dict[str, nn.Parameter]:
        name = f".{self._adapter_name(self.phase)}."
        return {key: value for key, value in self.model.named_parameters() if ".lora_" in key and name in key}

    def _trainables(self) -> dict[str, nn.Parameter]:
        crma = {} if self.backbone is None else dict(self.backbone.named_parameters(prefix="crma"))
        return self._lora_parameters() | crma

    def parameter_counts(self) -> dict[str, int]:
        counts = {"lora": sum(parameter.numel() for parameter in self._lora_parameters().values())}
        if self.backbone is not None:
            counts["crma"] = sum(parameter.numel() for parameter in self.backbone.parameters())
        return counts

    # Files ----------------------------------------------------------------------------------------------------------

    def save_phase(self, phase: int, lora: Path, crma: Path) -> None:
        name = self._adapter_name(phase)
        # What PeftModel.save_pretrained writes, file by file: atomic, and on the disk before the phase is recorded.
        tensors = get_peft_model_state_dict(self.model, adapter_name=name, save_embedding_layers=False)
        cpu = {key: tensor.detach().to("cpu").contiguous() for key, tensor in tensors.items()}
        atomic_write(lora / "adapter_model.safetensors", safetensors.torch.save(cpu, {"format": "pt"}))
        config = self.model.peft_config[name].to_dict() | {"inference_mode": True}
        text = json.dumps(config, indent=2, sort_keys=True, default=lambda value: sorted(value))  # sets as lists
        atomic_write(lora / "adapter_config.json", text.encode())
        if self.backbone is not None:
            self.backbone.save(crma)

    def restore_phase(self, phase: int, lora: Path, crma: Path) -> None:
        self._enter(phase)
        try:
            tensors = safetensors.torch.load_file(lora / "adapter_model.safetensors", device=str(self.device))
            result: Any = set_peft_model_state_dict(self.model, tensors, self._adapter_name(phase))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise damaged_phase(lora, f"{type(error).__name__}: {error}") from error
        if result.unexpected_keys or len(tensors) != len(self._lora_parameters()):
            raise damaged_phase(lora, f"{len(tensors)} tensors, of which unexpected: {result.unexpected_keys[:3]}")
        if self.backbone is not None:
            self.backbone.load(crma)

    def save_checkpoint(self, path: Path, progress: dict[str, Any]) -> None:
        torch_checkpoint.save_checkpoint(path, self._trainables(), self.optimizer, progress | {"phase": self.phase})

    def load_checkpoint(self, path: Path, phase: int) -> dict[str, Any] | None:
        progress = read_progress(path)
        if progress is None or progress["phase"] != phase:
            return None
        torch_checkpoint.load_checkpoint(path, self._trainables(), self.optimizer)
        return progress


def _attention(model_path: Path, device: str) -> str | None:
    """Plain attention on a CPU, where it is faster for short sequences, and where scores are capped (Gemma-2), which
    some releases of transformers leave out of their default; else the default.
    """
    config = AutoConfig.from_pretrained(model_path, local_files_only=True).get_text_config()
    return "eager" if device == "cpu" or getattr(config, "attn_logit_softcapping", None) else None

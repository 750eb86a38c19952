"""The one LoRA that is in memory: PEFT's adapter "task", drawn anew for a task, or read from its file.

However many tasks a run has, the model holds one adapter; those of other tasks lie in the run folder.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from torch import Tensor, nn

from backends.adapter_folder import read_adapter, write_adapter
from backends.finetune.engines.torch.checkpoint import safetensors_of
from backends.finetune.methods.frozen import raised_rank
from backends.finetune.protocols.protocol import LoraSection
from backends.finetune.runs.checkpoint_file import damaged_phase
from reference.errors import ProtocolError

NAME = "task"


class LoraSlot:
    """LoRA on a base model. ``extra`` parameters raise the rank until it has as many more than the section's.

    Raises: ProtocolError for target modules that the model does not have.
    """

    def __init__(self, base: Any, section: LoraSection, extra: int = 0) -> None:
        self.model = _with_lora(base, section, section.rank)
        if extra:
            per_rank = self.count() // section.rank
            self.model = _with_lora(self.model.unload(), section, raised_rank(section.rank, extra, per_rank))
        self.rank: int = self.model.peft_config[NAME].r

    @property
    def layers(self) -> dict[str, LoraLayer]:
        """The layers that LoRA sits on, by name."""
        return {name: module for name, module in self.model.named_modules() if isinstance(module, LoraLayer)}

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """A (r, in) and B (out, r) of every layer, by name."""
        return {name: factors(layer) for name, layer in self.layers.items()}

    def parameters(self) -> dict[str, nn.Parameter]:
        """A and B of every layer, by name."""
        return {name: value for name, value in self.model.named_parameters() if f".{NAME}." in name}

    def count(self) -> int:
        """How many values it has."""
        return sum(parameter.numel() for parameter in self.parameters().values())

    def draw(self, seed: int) -> None:
        """Start values: A as PEFT draws it, B zero. The caller's generator is left alone."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            for layer in self.layers.values():
                a, b = factors(layer)
                # drawn on the CPU, so that every device starts from the same values
                a.copy_(nn.init.kaiming_uniform_(torch.empty(a.shape, dtype=torch.float32), a=5**0.5))
                b.zero_()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base model answers without LoRA inside the block. PEFT leaves every factor trainable behind it, and this
        as it was."""
        trainable = {name: value.requires_grad for name, value in self.parameters().items()}
        try:
            with self.model.disable_adapter():
                yield
        finally:
            for name, value in self.parameters().items():
                value.requires_grad_(trainable[name])

    def save(self, folder: Path) -> None:
        """What PeftModel.save_pretrained writes, file by file: atomic, and on the disk when this returns."""
        tensors = get_peft_model_state_dict(self.model, adapter_name=NAME, save_embedding_layers=False)
        config = self.model.peft_config[NAME].to_dict() | {"inference_mode": True}
        text = json.dumps(config, indent=2, sort_keys=True, default=lambda value: sorted(value))  # sets as lists
        write_adapter(folder, safetensors_of(tensors), text.encode())

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote. Raises: RunFolderError for a damaged file."""
        parameters = self.parameters()
        try:
            tensors = safetensors.torch.load(read_adapter(folder, required=True)[0])
            result: Any = set_peft_model_state_dict(self.model, tensors, NAME)
        except (OSError, ValueError, SafetensorError, RuntimeError) as error:
            raise damaged_phase(folder, f"{type(error).__name__}: {error}") from error
        if result.unexpected_keys or len(tensors) != len(parameters):
            raise damaged_phase(folder, f"{len(tensors)} tensors, of which unexpected: {result.unexpected_keys[:3]}")


def factors(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) of one layer."""
    a: Any = layer.lora_A[NAME]
    b: Any = layer.lora_B[NAME]
    return a.weight, b.weight


def _with_lora(base: Any, section: LoraSection, rank: int) -> Any:
    # alpha / rank stays what the section says
    config = LoraConfig(
        r=rank,
        lora_alpha=section.alpha if rank == section.rank else section.alpha * rank / section.rank,  # type: ignore[arg-type]
        target_modules=section.target_modules,
        task_type="CAUSAL_LM",  # AutoPeftModelForCausalLM and pipelines ask for it
    )
    try:
        # what PEFT adds is in training mode, whatever mode the model is in
        model = get_peft_model(base, config, adapter_name=NAME).train(base.training)
    except ValueError as error:
        raise _unknown_modules(section, str(error)) from error
    found = model.targeted_module_names
    names = section.target_modules if isinstance(section.target_modules, list) else []
    if absent := [name for name in names if not any(f".{path}".endswith(f".{name}") for path in found)]:
        raise _unknown_modules(section, f"this model has no {absent[0]}")  # PEFT trains the others and does not say so
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer) and NAME not in module.lora_A:
            raise _unknown_modules(section, f"{path} is no linear layer")
    return model


def _unknown_modules(section: LoraSection, why: str) -> ProtocolError:
    return ProtocolError(
        "lora.target_modules",
        got=f"{section.target_modules!r} ({why})",
        allowed='names of linear layers in this model, or "all-linear"',
        remedy='use "all-linear"',
    )

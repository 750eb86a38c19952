"""Adapters of the quickstart's sizes with random values, written as a run writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from backends.finetune.protocols.protocol import Protocol


class Drawn(NamedTuple):
    """PEFT folders of as many tasks, and the state file of the CRMA that they share."""

    lora: list[Path]
    crma: Path

    @classmethod
    def of(cls, folder: Path, count: int) -> Drawn:
        return cls([folder / f"task-{index}" for index in range(count)], folder / "crma.safetensors")


def draw_adapters(model_path: Path, protocol: Protocol, folder: Path, count: int) -> Drawn:
    """Write ``count`` LoRAs and one CRMA for a model. Each LoRA has values of its own, so that no two share pages."""
    import safetensors.torch
    import torch
    from peft import LoraConfig, get_peft_model

    from backends.finetune.engines.torch.model import load_base
    from backends.torch import attach_crma
    from reference import AdapterConfig

    base: Any = load_base(model_path, protocol, torch.device("cpu"))
    crma, lora = protocol.crma, protocol.lora
    width = base.config.get_text_config().hidden_size
    backbone = attach_crma(base, AdapterConfig(width, crma.streams, crma.rank, crma.iterations))
    drawn = Drawn.of(folder, count)
    backbone.save(drawn.crma)
    backbone.detach_from_model()
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.target_modules)
    first = folder / "task-0"
    get_peft_model(base, config).save_pretrained(str(first))
    shapes = safetensors.torch.load_file(first / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for own in drawn.lora:
        own.mkdir(exist_ok=True)
        tensors = {name: 0.01 * torch.randn(value.shape, generator=generator) for name, value in shapes.items()}
        safetensors.torch.save_file(tensors, own / "adapter_model.safetensors", {"format": "pt"})
        (own / "adapter_config.json").write_bytes((first / "adapter_config.json").read_bytes())
    return drawn


def registry_of(
    model_path: Path, protocol: Protocol, drawn: Drawn, *, crma: bool = True, resident: int | None = None
) -> Any:
    """A registry of these adapters, named by their number."""
    import torch

    from backends.finetune.engines.torch.model import load_base
    from backends.finetune.inference.registry import AdapterRegistry
    from backends.finetune.inference.run_adapters import TaskAdapter
    from backends.finetune.inference.shared_adapter import attach_shared
    from backends.finetune.models.folder import load_tokenizer

    base = load_base(model_path, protocol, torch.device("cpu"))
    shared = attach_shared(base, drawn.crma) if crma else None
    tasks = {str(index): TaskAdapter((path,), drawn.crma if crma else None) for index, path in enumerate(drawn.lora)}
    return AdapterRegistry(base, load_tokenizer(model_path), tasks, shared=shared, resident=resident)

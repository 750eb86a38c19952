"""How many parameters a run has, counted on the meta device: exact, and without a weight in memory."""

from dataclasses import dataclass
from typing import Any

from backends.finetune.methods.conditions import parse_condition
from backends.finetune.methods.frozen import raised_rank
from backends.finetune.plan.skeleton import skeleton
from backends.finetune.protocols.protocol import Protocol


@dataclass(frozen=True)
class Counts:
    """Values: of the base model; of them those in its linear layers that 4-bit quantization stores (all but the head),
    and of a head that shares nothing with the embedding; of one task's LoRA, in all and per rank; of the CRMA of all
    layers; of each layer's sizes, d and how many layers.
    """

    base: int
    linear: int
    head: int
    lora: int
    lora_per_rank: int
    crma: int
    layers: int
    hidden_size: int

    def raised_rank(self, rank: int) -> int:
        """LoRA's rank in the condition frozen-raised: the smallest with as many values as LoRA and CRMA have."""
        return raised_rank(rank, self.crma, self.lora_per_rank)

    def trainable(self, name: str, rank: int) -> dict[str, int]:
        """What a condition trains, by part, as the engine's ``parameter_counts`` has it.

        ``modular-still`` is counted as in its first task.
        """
        condition = parse_condition(name)
        if condition.trains == "full":
            return {"full": self.base}
        lora = self.lora_per_rank * (self.raised_rank(rank) if condition.raised_rank else rank)
        return {"lora": lora} | ({"crma": self.crma} if condition.crma != "none" else {})


def count_parameters(config: Any, protocol: Protocol) -> Counts:
    """Count. Raises: ModelError, ProtocolError for LoRA's target modules."""
    from torch import nn

    model = skeleton(config, protocol.lora)
    lora = sum(value.numel() for name, value in model.named_parameters() if ".lora_" in name)
    base = model.get_base_model()
    head = base.get_output_embeddings()
    linear = sum(
        module.weight.numel()
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and module is not head and ".lora_" not in f".{name}"
    )
    shared = head is None or head.weight is base.get_input_embeddings().weight
    sizes = protocol.crma
    per_layer = sizes.streams**2 + 1 + sizes.streams * sizes.rank * config.hidden_size
    return Counts(
        base=sum(value.numel() for name, value in model.named_parameters() if ".lora_" not in name),
        linear=linear,
        head=0 if shared else head.weight.numel(),
        lora=lora,
        lora_per_rank=lora // protocol.lora.rank,
        crma=config.num_hidden_layers * per_layer,
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
    )

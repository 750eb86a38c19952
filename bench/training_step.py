"""A fine-tuning step of LoRA alone and of LoRA with CRMA, built alike, so that CRMA is the only difference.

Models: ``tiny``, a random Llama of two layers for CI; ``smollm2``, the real SmolLM2-135M; ``mistral-7b``, that
configuration with random weights; or a folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.machine import require_device
from reference.errors import ConfigError, MissingPackageError

PRECISIONS = ("float32", "mixed", "bfloat16")
RATES = {"basis": 1e-3, "mixing": 2e-2, "gate": 2e-2}


@dataclass(frozen=True)
class Setting:
    """What both sides have in common. ``mixed``: float32 weights under bfloat16 autocast. ``delta``: CRMA's budget."""

    model: str = "smollm2"
    device: str = "cpu"
    precision: str = "float32"
    batch: int = 4
    tokens: int = 112
    delta: float | None = None
    lora_rank: int = 8

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS or min(self.batch, self.tokens, self.lora_rank) < 1:
            raise ConfigError(
                "setting",
                got=f"precision {self.precision!r}, {self.batch} x {self.tokens} tokens, LoRA of rank {self.lora_rank}",
                allowed=f"a precision of {', '.join(PRECISIONS)}; batch, tokens and rank >= 1",
                remedy="leave them at their defaults",
            )


class Side:
    """A model with LoRA on every linear layer, and CRMA where ``crma`` is set; ``step()`` trains it by one batch.

    Raises: MissingPackageError, ModelError.
    """

    def __init__(self, setting: Setting, *, crma: bool) -> None:
        import torch

        self.setting, self.crma = setting, crma
        base = _model(setting)
        config = base.config
        self.backbone = self.anchor = None
        if crma:
            from backends.torch import attach_crma

            self.backbone = attach_crma(base)
            self.anchor = self.backbone.state()
        self.model = _with_lora(base, setting.lora_rank)
        lora = [parameter for name, parameter in self.model.named_parameters() if ".lora_" in name]
        groups: list[dict[str, Any]] = [{"params": lora, "lr": 1e-3}]
        if self.backbone is not None:
            self.backbone.requires_grad_(True)  # get_peft_model freezes it
            groups += [{"params": part, "lr": RATES[name]} for name, part in self.backbone.parameter_groups().items()]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        generator = torch.Generator().manual_seed(0)
        shape = (setting.batch, setting.tokens)
        self.ids = torch.randint(config.vocab_size, shape, generator=generator).to(setting.device)

    def step(self) -> float:
        """Forward, loss, backward, clipping of each group, AdamW, the budget. Returns the loss, and so waits for it."""
        import torch

        with torch.autocast(self.setting.device, torch.bfloat16, enabled=self.setting.precision == "mixed"):
            logits = self.model(input_ids=self.ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), self.ids[:, 1:].flatten())
        loss.backward()
        for group in self.optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.backbone is not None and self.anchor is not None and self.setting.delta is not None:
            self.backbone.limit_displacement(self.anchor, self.setting.delta)
        return float(loss.detach())

    def decoder(self) -> Callable[[], float]:
        """A function that decodes one more token of a batch of one, with a KV cache, and waits for it."""
        import torch

        model = self.model.eval()
        with torch.no_grad():
            self._cache = model(input_ids=self.ids[:1], use_cache=True).past_key_values
        token = self.ids[:1, -1:]

        def decode() -> float:
            nonlocal token
            with torch.no_grad():
                output = model(input_ids=token, past_key_values=self._cache, use_cache=True)
            self._cache, token = output.past_key_values, output.logits[:, -1:].argmax(-1)
            return float(token)

        return decode


def _model(setting: Setting) -> Any:
    require_device(setting.device, "python -m bench.bench_training_step --device cuda")
    try:
        import torch
        from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    dtype = torch.bfloat16 if setting.precision == "bfloat16" else torch.float32
    random: dict[str, Callable[[], Any]] = {
        "mistral-7b": MistralConfig,
        "tiny": lambda: LlamaConfig(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        ),
    }
    torch.manual_seed(0)
    if setting.model in random:
        with torch.device(setting.device):
            model = AutoModelForCausalLM.from_config(random[setting.model](), dtype=dtype)
    else:
        from backends.finetune.models.resolve import resolve_model
        from backends.finetune.models.weights import load_weights

        model = load_weights(resolve_model(setting.model), dtype, torch.device(setting.device))
    return model.to(setting.device).eval().requires_grad_(False)


def _with_lora(base: Any, rank: int) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    return get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


def _missing(error: ModuleNotFoundError) -> MissingPackageError:
    return MissingPackageError(
        "training step",
        got=f"no package named {error.name}",
        allowed="an installation with the extra 'finetune'",
        remedy="pip install 'crma[finetune]'",
    )

"""Whole models with random weights: a step and a decoded token with CRMA over those without, memory, spectral log.

LoRA by PEFT on every linear layer, CRMA behind every block, AdamW, one row of random tokens: the loop of
docs/tutorials/own-training-loop.md, which needs no pydantic. Without CRMA is measured before and after, on the same
model. Sizes and precision are those of ``gemma-five-phase``; the weights change neither time nor memory.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

from bench.gpu.report import Figures, Report, at_most
from bench.memory import peak_bytes, reset_peak
from bench.projections import package

LORA_RANK = 16
TOKENS = 2048
STEPS, DECODED = 6, 30
#: of the first task; later ones may move no layer further from it
BUDGET = 0.005


class Trained:
    """A model of the zoo on ``device``; ``reduced``: the small one of its family, in float32.

    Raises: MissingPackageError.
    """

    def __init__(self, name: str, device: str, *, reduced: bool) -> None:
        import torch

        transformers: Any = package("transformers", "transformers")
        peft: Any = package("peft", "peft")
        from backends.finetune.models.attention import default_attention
        from backends.finetune.models.zoo import ZOO

        zoo = ZOO[name]
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        fields = zoo.fields | ids | (zoo.reduced | {"vocab_size": 512} if reduced else {})
        config = transformers.AutoConfig.for_model(**fields)
        self.device, self._budget = device, BUDGET
        self.backbone: Any = None
        self._anchor: Any = None
        torch.manual_seed(0)
        with torch.device(device):
            base = transformers.AutoModelForCausalLM.from_config(
                config,
                dtype=torch.float32 if reduced else torch.bfloat16,
                attn_implementation=default_attention(config, device),
            )
            self.ids = torch.randint(3, config.get_text_config().vocab_size, (1, 32 if reduced else TOKENS))
        base.requires_grad_(False)
        base.train().gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
        lora = peft.LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear")
        self.model: Any = peft.get_peft_model(base, lora)
        self._optimizer = self._made([{"params": self._lora()}])

    def _lora(self) -> list[Any]:
        return [value for name, value in self.model.named_parameters() if ".lora_" in name]

    def _made(self, groups: list[dict[str, Any]]) -> Any:
        import torch

        return torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.0)

    def attach(self, budget: float = BUDGET) -> None:
        """CRMA behind every block, which trains from now on, within the budget."""
        from backends.torch import attach_crma

        backbone = attach_crma(self.model)
        self.backbone = backbone
        self._anchor, self._budget = backbone.state(), budget
        rates = {"basis": 1e-2, "mixing": 2e-1, "gate": 2e-1}
        groups = [{"params": values, "lr": rates[name]} for name, values in backbone.parameter_groups().items()]
        self._optimizer = self._made([{"params": self._lora()}, *groups])

    def detach(self) -> None:
        """Without CRMA again."""
        if self.backbone is not None:
            self.backbone.detach_from_model()
        self.backbone = None
        self._optimizer = self._made([{"params": self._lora()}])

    def step(self) -> Any:
        """One optimizer step; the loss, which is not waited for."""
        loss = self.model(input_ids=self.ids, labels=self.ids, use_cache=False).loss
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self.backbone is not None:
            self.backbone.limit_displacement(self._anchor, self._budget)
        return loss.detach()

    def decoder(self) -> Callable[[], Any]:
        """A function that decodes one more token of a batch of one, with a KV cache."""
        import torch

        self.model.eval()
        cache, token = None, self.ids[:, :16]

        @torch.no_grad()
        def decode() -> Any:
            nonlocal cache, token
            output = self.model(input_ids=token, past_key_values=cache, use_cache=True)
            cache, token = output.past_key_values, output.logits[:, -1:].argmax(-1)
            return token

        decode()
        return decode

    def spectrum(self) -> Figures:
        """The extremes over layers: norms of M and of the adapter, and how far the furthest is from the start."""
        assert self.backbone is not None
        found = self.backbone.certificate(self._anchor)
        assert found.displacement is not None
        return {
            "norm_max": float(found.mixing_norm.max()),
            "adapter_max": float(found.largest.max()),
            "adapter_min": float(found.smallest.min()),
            "displacement_max": float(found.displacement.max()),
        }


def model(name: str, report: Report) -> None:
    """Without CRMA, with it, and without it again; what is measured each time is a part."""
    trained: Trained | None = None
    sides: dict[str, Figures] = {}
    with report.part("model") as figures:
        started = time.perf_counter()
        trained = Trained(name, report.device, reduced=report.small)
        figures["seconds"] = time.perf_counter() - started
        figures["parameters"] = sum(parameter.numel() for parameter in trained.model.parameters())
    if trained is None:
        return
    for side in ("lora", "lora_crma", "lora_again"):
        with report.part(side) as figures:
            if side == "lora_crma":
                trained.attach()
            elif trained.backbone is not None:
                trained.detach()
            figures |= _measured(trained, report)
            sides[side] = figures
            if trained.backbone is not None:
                at_most(figures, "norm of M - 1", figures["spectral"][-1]["norm_max"] - 1, 5e-7)
                at_most(figures, "norm of the adapter - 1", figures["spectral"][-1]["adapter_max"] - 1, 1e-6)
                at_most(figures, "displacement", figures["spectral"][-1]["displacement_max"], BUDGET * 1.0001)
    with report.part("ratio, lora_crma over lora") as figures:
        before, both, after = (sides[side] for side in ("lora", "lora_crma", "lora_again"))
        for kind in ("step_seconds", "decode_seconds"):
            figures[kind] = both[kind] / ((before[kind] + after[kind]) / 2)
            figures[f"{kind}, over the first alone"] = both[kind] / before[kind]
        figures["peak_bytes"] = both["peak_bytes"] / before["peak_bytes"]


def _measured(trained: Trained, report: Report) -> Figures:
    """Seconds of a step and of a token, medians after two that warm up; peak memory of the steps; spectral log."""
    losses: list[Any] = []
    spectra: list[Figures] = []
    seconds: list[float] = []
    trained.model.train()
    since = reset_peak(report.device)
    for _ in range(2 if report.small else STEPS):
        seconds.append(_seconds(trained.device, lambda: losses.append(trained.step())))
        if trained.backbone is not None:
            spectra.append(trained.spectrum())
    peak = peak_bytes(report.device)
    decode = trained.decoder()
    tokens = [_seconds(trained.device, decode) for _ in range(2 if report.small else DECODED)]
    found: Figures = {
        "step_seconds": statistics.median(seconds[2:] or seconds),
        "decode_seconds": statistics.median(tokens[2:] or tokens),
        "tokens_per_second": trained.ids.numel() / statistics.median(seconds[2:] or seconds),
        "peak_bytes": peak,
        "since_load": since,
        "losses": [float(loss) for loss in losses],
    }
    return found | ({"spectral": spectra} if spectra else {})


def _seconds(device: str, work: Callable[[], Any]) -> float:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started

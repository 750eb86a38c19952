"""Gradient checkpointing changes memory and nothing else, in models that have dropout too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

from backends.finetune.conftest import adapters, measured
from backends.finetune.engines.torch.model import load_base
from backends.finetune.protocols.protocol import Protocol
from backends.torch.conftest import FAMILIES, tiny_config
from reference.errors import ModelError

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
#: Where dropout is a number that a block keeps, or a module under the name that elsewhere is a number
WITH_DROPOUT: dict[str, dict[str, Any]] = {
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.3, "attention_dropout": 0.3, "layerdrop": 0.3},
    "bloom": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
    "gpt2": {"resid_pdrop": 0.3, "attn_pdrop": 0.3, "embd_pdrop": 0.3},
    "falcon": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
    "phi3": {"resid_pdrop": 0.3, "attention_dropout": 0.3},
    "seed_oss": {"attention_dropout": 0.3, "residual_dropout": 0.3, "num_key_value_heads": 2, "intermediate_size": 48},
}


def folder_of(config: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def protocol(**fields: Any) -> Protocol:
    return Protocol(name="made up", description="", tasks=["A"], train=1, holdout=1, **fields)


@pytest.mark.parametrize("family", [*WITH_DROPOUT, *(name for name in FAMILIES if name not in WITH_DROPOUT)])
def test_checkpointing_leaves_what_a_model_computes_as_it_was(family, tmp_path):
    if family in WITH_DROPOUT and family not in FAMILIES:
        config = transformers.AutoConfig.for_model(family, **SIZES | WITH_DROPOUT[family])
    else:
        config = tiny_config(family, **WITH_DROPOUT.get(family, {}))
    folder = folder_of(config, tmp_path / "model")
    plain, checkpointed = (
        load_base(folder, protocol(gradient_checkpointing=on), torch.device("cpu")) for on in (False, True)
    )
    ids = torch.arange(4, 16)[None]
    expected = plain(input_ids=ids).logits
    for _ in range(3):
        assert torch.equal(checkpointed(input_ids=ids).logits, expected)
    assert checkpointed.is_gradient_checkpointing
    if family in WITH_DROPOUT:  # or there would be nothing to turn off
        noisy = transformers.AutoModelForCausalLM.from_pretrained(folder).train()
        assert not torch.equal(noisy(input_ids=ids).logits, noisy(input_ids=ids).logits)


def test_a_model_with_noise_of_its_own_is_refused(tmp_path, monkeypatch):
    folder = folder_of(tiny_config("llama"), tmp_path / "model")
    mlp = transformers.models.llama.modeling_llama.LlamaMLP
    forward = mlp.forward

    def noisy(self: Any, x: Any) -> Any:
        return forward(self, x) + (0.1 * torch.randn_like(x) if self.training else 0.0)

    monkeypatch.setattr(mlp, "forward", noisy)
    with pytest.raises(ModelError, match="gradient_checkpointing=false"):
        load_base(folder, protocol(gradient_checkpointing=True), torch.device("cpu"))
    load_base(folder, protocol(), torch.device("cpu"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_with_checkpointing_ends_with_the_same_bits(tmp_path, crma, finetune_command, precision):
    settings = ("--set", f"precision={precision}", "--set", "epochs=1", "--conditions", "modular", "ewc", "full")
    runs = tmp_path / "plain", tmp_path / "checkpointed"
    for run, on in zip(runs, ("false", "true"), strict=True):
        command: Callable[..., list[str]] = finetune_command
        assert crma(command(run, *settings, "--set", f"gradient_checkpointing={on}"))[0] == 0
    assert adapters(runs[1]) == adapters(runs[0])
    assert measured(runs[1]) == measured(runs[0])

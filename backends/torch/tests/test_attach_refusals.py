"""Models that cannot carry the adapters: one clear error, and the model is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import transformers

from backends.torch import attach_crma
from backends.torch.conftest import activate, everything, tiny_config, tiny_model
from reference.errors import ConfigError, ModelError

IDS = torch.tensor([[5, 9, 13, 44, 3, 21, 33, 8, 51, 17]])


def refused(kind: str) -> tuple[Any, str]:
    """A model that cannot carry the adapters, and what the error says of it."""
    t: Any = transformers
    small = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "intermediate_size": 48}
    if kind == "t5":
        config = t.T5Config(vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=2)
        return t.T5ForConditionalGeneration(config), "an encoder and a decoder"
    if kind == "bert":
        return t.BertForMaskedLM(t.BertConfig(**small, **heads)), "seen by earlier ones"
    if kind == "bert as a language model":
        return t.BertLMHeadModel(t.BertConfig(**small, **heads)), "seen by earlier ones"
    if kind == "mamba":
        return t.MambaForCausalLM(t.MambaConfig(**small, state_size=4)), "no attention heads"
    if kind == "linear":
        return nn.Linear(2, 2), "Linear: no configuration"
    if kind == "no list":
        model = tiny_model("llama")
        model.model.layers = nn.Sequential(*model.model.layers)  # not the container that was looked for
        return model, "0 lists of such blocks"
    if kind == "two kinds of block":
        model = tiny_model("llama")
        model.model.layers[1] = type("OtherBlock", (type(model.model.layers[1]),), {})(model.config, 1)
        return model, "0 lists of such blocks"
    if kind == "two stacks":
        return TwoStacks(), "2 lists of such blocks"
    if kind == "meta":
        with torch.device("meta"):
            return t.LlamaForCausalLM(tiny_config("llama")), "meta device"
    raise AssertionError(kind)


class TwoStacks(nn.Module):
    """Two decoders, one after the other: which of them to adapt is not for us to guess."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = tiny_model("llama"), tiny_model("llama", seed=1)
        self.config = self.first.config

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        hidden = self.first.model(input_ids, use_cache=use_cache).last_hidden_state
        return self.second.model(inputs_embeds=hidden, use_cache=use_cache)


KINDS = ("t5", "bert", "bert as a language model", "mamba", "linear", "no list", "two kinds of block", "two stacks")


@pytest.mark.parametrize("kind", [*KINDS, "meta"])
def test_models_that_cannot_carry_it_are_refused_and_left_alone(kind: str) -> None:
    model, message = refused(kind)
    before = everything(model) if kind != "meta" else None
    with pytest.raises(ModelError, match=message) as caught:
        attach_crma(model)
    assert "nn.ModuleList" in caught.value.allowed
    assert "CRMAAdapter" in caught.value.remedy
    assert before is None or everything(model) == before


def test_attaching_twice_is_refused_and_changes_nothing() -> None:
    model = tiny_model("gpt_neox")
    activate(attach_crma(model))
    active = model(IDS).logits
    with pytest.raises(ModelError, match="already attached"):
        attach_crma(model)
    assert torch.equal(model(IDS).logits, active)


def test_a_forward_that_another_library_replaced_is_refused() -> None:
    model = tiny_model("llama")
    block = model.model.layers[1]
    old = block.forward
    block.forward = lambda *args, **kwargs: old(*args, **kwargs)
    with pytest.raises(ModelError, match=r"model\.layers\.1\.forward"):
        attach_crma(model)


def test_gemma2_without_its_soft_cap_is_refused() -> None:
    """With this attention one release of transformers refuses the model, and another silently leaves the cap out."""
    with pytest.raises((ValueError, ModelError), match="eager"):
        attach_crma(transformers.AutoModelForCausalLM.from_config(tiny_config("gemma2"), attn_implementation="sdpa"))


def test_an_unknown_basis_is_refused() -> None:
    with pytest.raises(ConfigError, match="basis"):
        attach_crma(tiny_model("llama"), basis="other")  # type: ignore[arg-type]

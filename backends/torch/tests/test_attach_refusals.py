"""Models, options and changes that attaching or detaching refuses: one clear error, and the model is left as it was."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import transformers

from backends.torch import attach_crma, attached_backbone
from backends.torch.conftest import IDS, activate, everything, tiny_config, tiny_model
from reference import AdapterConfig
from reference.errors import ConfigError, ModelError

pytestmark = pytest.mark.clause("ERR-2", "ERR-4")

T: Any = transformers
SMALL = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "intermediate_size": 48}


class TwoStacks(nn.Module):
    """Two decoders, one after the other: which of them to adapt is not for us to guess."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = tiny_model("llama"), tiny_model("llama", seed=1)
        self.config = self.first.config

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        hidden = self.first.model(input_ids, use_cache=use_cache).last_hidden_state
        return self.second.model(inputs_embeds=hidden, use_cache=use_cache)


def t5() -> Any:
    return T.T5ForConditionalGeneration(T.T5Config(vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=2))


def no_list() -> Any:
    model = tiny_model("llama")
    model.model.layers = nn.Sequential(*model.model.layers)  # not the container that was looked for
    return model


def two_kinds_of_block() -> Any:
    model = tiny_model("llama")
    model.model.layers[1] = type("OtherBlock", (type(model.model.layers[1]),), {})(model.config, 1)
    return model


def meta() -> Any:
    with torch.device("meta"):
        return T.LlamaForCausalLM(tiny_config("llama"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (t5, "an encoder and a decoder"),
        (lambda: T.BertForMaskedLM(T.BertConfig(**SMALL, **HEADS)), "seen by earlier ones"),
        (lambda: T.BertLMHeadModel(T.BertConfig(**SMALL, **HEADS)), "seen by earlier ones"),
        (lambda: T.MambaForCausalLM(T.MambaConfig(**SMALL, state_size=4)), "no attention heads"),
        (lambda: nn.Linear(2, 2), "Linear: no configuration"),
        (no_list, "0 lists of such blocks"),
        (two_kinds_of_block, "0 lists of such blocks"),
        (TwoStacks, "2 lists of such blocks"),
        (meta, "meta device"),
    ],
)
def test_models_that_cannot_carry_it_are_refused_and_left_alone(build: Callable[[], Any], message: str) -> None:
    model = build()
    before = everything(model) if build is not meta else None
    with pytest.raises(ModelError, match=message) as caught:
        attach_crma(model)
    assert "nn.ModuleList" in caught.value.allowed
    assert "CRMAAdapter" in caught.value.remedy
    assert before is None or everything(model) == before


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("basis", {"basis": "other"}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": "a"}),
        ("config", {"config": 5}),
        ("config.hidden_size", {"config": AdapterConfig(64)}),
        ("skip_directions", {"skip_directions": 2}),
    ],
)
def test_options_are_refused_by_name(field: str, options: dict[str, Any]) -> None:
    model = tiny_model("llama")
    before = everything(model)
    with pytest.raises(ConfigError, match=f"^{field}: "):
        attach_crma(model, **options)
    assert everything(model) == before


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


def test_a_configuration_that_cannot_be_read_leaves_the_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    before = everything(model)
    monkeypatch.setattr("backends.torch.attach.describe", lambda base: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attach_crma(model)
    assert everything(model) == before


def test_a_field_with_a_value_for_each_layer_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As head_dim of Gemma 4, whose configuration raises a RuntimeError."""
    model = tiny_model("llama")
    plain = attach_crma(model)
    plain.detach_from_model()

    def ambiguous(self: object) -> int:
        raise RuntimeError("ambiguous")

    monkeypatch.setattr(type(model.config), "head_dim", property(ambiguous, lambda self, value: None), raising=False)
    backbone = attach_crma(model)
    assert backbone.base_model == plain.base_model
    assert len(backbone.base_model_sha256) == 64


def test_a_second_backbone_cannot_detach_what_is_detached() -> None:
    model = tiny_model("llama")
    before = everything(model)
    first, second = attach_crma(model), attached_backbone(model)
    copy.deepcopy(first).detach_from_model()  # a copy is in no model
    assert hasattr(model.model.layers[0], "crma")
    first.detach_from_model()
    with pytest.raises(ModelError, match=r"model\.layers\.0, a LlamaDecoderLayer that has changed"):
        second.detach_from_model()
    first.detach_from_model()  # once more does nothing
    assert everything(model) == before
    model.add_module("extra", nn.ModuleList())  # which carries no adapters, though none of its blocks is without
    with pytest.raises(ModelError, match="no CRMA adapters"):
        attached_backbone(model)


@pytest.mark.parametrize("kind", ["class", "forward"])
def test_a_block_that_somebody_changed_is_left_alone(kind: str) -> None:
    model = tiny_model("llama")
    backbone = attach_crma(model)
    block = model.model.layers[1]
    if kind == "class":
        block.__class__ = type("Wrapped", (type(block),), {})
    else:
        block.forward = lambda *args, _own=block.forward, **kwargs: _own(*args, **kwargs)
    before = everything(model), model(IDS).logits
    with pytest.raises(ModelError, match=r"model\.layers\.1"):
        backbone.detach_from_model()
    assert everything(model) == before[0]
    assert torch.equal(model(IDS).logits, before[1])

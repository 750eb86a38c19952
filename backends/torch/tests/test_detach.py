"""detach_from_model restores the model, or refuses and changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from backends.torch import attach_crma
from backends.torch.attach import attached_backbone
from backends.torch.conftest import everything, tiny_model
from reference.errors import ConfigError, ModelError

IDS = torch.arange(3, 17).reshape(2, 7)


@pytest.mark.clause("ERR-4")
def test_a_second_backbone_cannot_detach_what_is_detached() -> None:
    model = tiny_model("llama")
    before = everything(model)
    first = attach_crma(model)
    second = attached_backbone(model)
    first.detach_from_model()
    with pytest.raises(ModelError, match=r"model\.layers\.0, a LlamaDecoderLayer that has changed"):
        second.detach_from_model()
    first.detach_from_model()  # once more does nothing
    assert everything(model) == before


@pytest.mark.clause("ERR-4")
@pytest.mark.parametrize("kind", ["class", "forward"])
def test_a_block_that_somebody_changed_is_left_alone(kind: str) -> None:
    model = tiny_model("llama")
    backbone = attach_crma(model)
    block = model.model.layers[1]
    if kind == "class":
        block.__class__ = type("Wrapped", (type(block),), {})
    else:
        block.forward = lambda *args, _own=block.forward, **kwargs: _own(*args, **kwargs)
    with torch.no_grad():
        before = model(IDS).logits
        with pytest.raises(ModelError, match=r"model\.layers\.1"):
            backbone.detach_from_model()
        assert torch.equal(model(IDS).logits, before)
    assert len(list(model.named_parameters())) == len(list(tiny_model("llama").named_parameters())) + 6


@pytest.mark.clause("ERR-4")
def test_a_copied_backbone_is_in_no_model() -> None:
    model = tiny_model("llama")
    backbone = attach_crma(model)
    copy.deepcopy(backbone).detach_from_model()
    assert hasattr(model.model.layers[0], "crma")
    backbone.detach_from_model()
    assert not hasattr(model.model.layers[0], "crma")


@pytest.mark.clause("ERR-4")
def test_a_configuration_that_cannot_be_read_leaves_the_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    before = everything(model)

    def fail(base: nn.Module) -> str:
        raise RuntimeError("one value for each layer")

    monkeypatch.setattr("backends.torch.attach.describe", fail)
    with pytest.raises(RuntimeError, match="one value"):
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


@pytest.mark.clause("ERR-2")
@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("seed", {"seed": -1}),
        ("seed", {"seed": "a"}),
        ("config", {"config": 5}),
        ("skip_directions", {"skip_directions": 2}),
    ],
)
def test_options_are_refused_by_name(field: str, options: dict[str, object]) -> None:
    model = tiny_model("llama")
    before = everything(model)
    with pytest.raises(ConfigError, match=f"^{field}: "):
        attach_crma(model, **options)  # type: ignore[arg-type]  # what is tested
    assert everything(model) == before


def test_an_empty_list_of_blocks_carries_no_adapters() -> None:
    model = tiny_model("llama")
    model.add_module("extra", nn.ModuleList())
    with pytest.raises(ModelError, match="no CRMA adapters"):
        attached_backbone(model)

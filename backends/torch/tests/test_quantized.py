"""Base models whose weights are no floating-point matrices."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import transformers

from backends.torch import attach_crma
from backends.torch.conftest import activate, everything, tiny_model
from reference.errors import ModelError

IDS = torch.tensor([[5, 9, 13, 44, 3, 21, 33, 8, 51, 17], [7, 7, 50, 12, 29, 4, 40, 18, 6, 55]])


class QuantizedLinear(nn.Module):
    """Eight-bit integers in the place of a weight, as quantizers keep them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.scale = float(linear.weight.detach().abs().max() / 127)
        self.weight = nn.Parameter((linear.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight.to(x.dtype) * self.scale).T


def test_quantized_weights_carry_a_random_basis() -> None:
    model = tiny_model("llama")
    for parent in list(model.model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, QuantizedLinear(child))
    bare = model(IDS).logits
    before = everything(model)
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.down_proj: .*quantized.*basis='random'"):
        attach_crma(model, basis="principal")
    assert everything(model) == before
    backbone = activate(attach_crma(model))
    assert (model(IDS).logits - bare).abs().max() > 0.1
    model(IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    backbone.detach_from_model()
    assert everything(model) == before


def test_attaching_leaves_four_bit_weights_of_a_cpu_able_to_train(tmp_path: Any) -> None:
    pytest.importorskip("bitsandbytes", reason="pip install 'crma[quantization]'")
    tiny_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    quantization = transformers.BitsAndBytesConfig(load_in_4bit=True)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=quantization, device_map={"": "cpu"}
    ).eval()
    weights = {name: value for name, value in model.named_parameters() if value.dtype == torch.uint8}
    before = {name: value.detach().clone() for name, value in weights.items()}
    backbone = activate(attach_crma(model))
    assert before
    assert all(torch.equal(value, before[name]) for name, value in weights.items())
    assert not model.model.layers[0].mlp.down_proj.training
    model.train()
    model(IDS, labels=IDS).loss.backward()
    gradients = [parameter.grad for parameter in backbone.parameters()]
    assert all(gradient is not None and float(gradient.norm()) > 0 for gradient in gradients)


def _without_bitsandbytes() -> str:
    if importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed"
    return "" if torch.cuda.is_available() else "bitsandbytes needs CUDA here"


@pytest.mark.skipif(bool(_without_bitsandbytes()), reason=_without_bitsandbytes() or "runs")
def test_a_four_bit_base_model(tmp_path: Any) -> None:
    tiny_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    quantization = transformers.BitsAndBytesConfig(load_in_4bit=True)
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(tmp_path, quantization_config=quantization, device_map={"": 0}).eval()
    ids = IDS.cuda()
    bare = model(ids).logits
    with pytest.raises(ModelError, match="basis='random'"):
        attach_crma(model, basis="principal")
    backbone = attach_crma(model, gate_logit=-1e4)
    assert torch.equal(model(ids).logits, bare)
    activate(backbone)
    assert not torch.equal(model(ids).logits, bare)
    model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    backbone.detach_from_model()
    assert torch.equal(model(ids).logits, bare)

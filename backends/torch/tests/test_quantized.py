"""Base models whose weights are no floating-point matrices."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import transformers

from backends.torch import CRMABackbone, attach_crma
from backends.torch.conftest import IDS, activate, everything, tiny_model
from reference.errors import ModelError


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
    assert_trains(model, backbone)
    backbone.detach_from_model()
    assert everything(model) == before


def four_bit_model(folder: Path, device: Any) -> Any:
    pytest.importorskip("bitsandbytes", reason="pip install 'crma[quantization]'")
    tiny_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(folder)
    quantization = transformers.BitsAndBytesConfig(load_in_4bit=True)
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(folder, quantization_config=quantization, device_map={"": device}).eval()


def assert_trains(model: Any, backbone: CRMABackbone) -> None:
    ids = IDS.to(model.device)
    model(ids, labels=ids).loss.backward()
    gradients = [parameter.grad for parameter in backbone.parameters()]
    assert all(gradient is not None and float(gradient.norm()) > 0 for gradient in gradients)


def test_attaching_leaves_four_bit_weights_of_a_cpu_able_to_train(tmp_path: Path) -> None:
    model = four_bit_model(tmp_path, "cpu")
    weights = {name: value for name, value in model.named_parameters() if value.dtype == torch.uint8}
    before = {name: value.detach().clone() for name, value in weights.items()}
    backbone = activate(attach_crma(model))
    assert before
    assert all(torch.equal(value, before[name]) for name, value in weights.items())
    assert not model.model.layers[0].mlp.down_proj.training
    assert_trains(model.train(), backbone)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="bitsandbytes needs CUDA here")
def test_a_four_bit_base_model(tmp_path: Path) -> None:
    model, ids = four_bit_model(tmp_path, 0), IDS.cuda()
    bare = model(ids).logits
    with pytest.raises(ModelError, match="basis='random'"):
        attach_crma(model, basis="principal")
    backbone = attach_crma(model, gate_logit=-1e4)
    assert torch.equal(model(ids).logits, bare)
    activate(backbone)
    assert not torch.equal(model(ids).logits, bare)
    assert_trains(model, backbone)
    backbone.detach_from_model()
    assert torch.equal(model(ids).logits, bare)

"""attach_crma and CRMABackbone on a small random Llama, alone and with PEFT."""

from typing import Any

import numpy as np
import pytest
import torch

import reference
from backends.torch import CRMABackbone, attach_crma, sinkhorn_projection
from backends.torch.functions import functions
from reference.errors import ConfigError, ModelError, NonFiniteError

pytest.importorskip("transformers")
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

IDS = torch.arange(24).reshape(2, 12) % 50


def make_model(hidden_size: int = 32, layers: int = 3) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=50,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def disturb(backbone: CRMABackbone, size: float = 0.5) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def open_gates(backbone: CRMABackbone) -> CRMABackbone:
    with torch.no_grad():
        for gate in backbone.parameter_groups()["gate"]:
            gate.fill_(1.0)
    return backbone


def test_attached_disabled_and_detached() -> None:
    model = make_model()
    keys, classes, bare = list(model.state_dict()), [type(b) for b in model.model.layers], model(IDS).logits
    backbone = open_gates(attach_crma(model))
    active = model(IDS).logits
    assert (active - bare).abs().max() > 1e-2
    with backbone.disabled():
        assert torch.equal(model(IDS).logits, bare)
    assert torch.equal(model(IDS).logits, active)
    backbone.detach_from_model()
    assert torch.equal(model(IDS).logits, bare)
    assert list(model.state_dict()) == keys
    assert [type(b) for b in model.model.layers] == classes


def test_a_closed_gate_leaves_the_logits_bit_for_bit() -> None:
    model = make_model()
    bare = model(IDS).logits
    backbone = attach_crma(model, gate_logit=-200.0)
    disturb(backbone, 0.1)
    assert torch.equal(model(IDS).logits, bare)


def test_each_layer_is_the_reference_adapter_after_the_block() -> None:
    model = make_model()
    outputs: dict[str, torch.Tensor] = {}
    block = model.model.layers[1]
    backbone = open_gates(attach_crma(model))
    block.crma.register_forward_hook(lambda module, args, output: outputs.update(x=args[0], y=output))
    model(IDS)
    state = backbone.state()
    parameters = reference.AdapterParameters(*(tensor[1].numpy() for tensor in state))
    expected = reference.adapter_forward(outputs["x"].detach().numpy(), parameters)
    np.testing.assert_allclose(outputs["y"].detach().numpy(), expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(expected - outputs["x"].detach().numpy()).max() > 1e-3


def test_the_projection_for_all_layers_gives_the_gradients_of_separate_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    backbone = open_gates(attach_crma(model))
    model(IDS, labels=IDS).loss.backward()
    together = [parameter.grad.clone() for parameter in backbone.parameters() if parameter.grad is not None]
    model.zero_grad()
    monkeypatch.setattr("backends.torch.attach.prepare_adapters", lambda adapters: None)
    model(IDS, labels=IDS).loss.backward()
    separate = [parameter.grad for parameter in backbone.parameters() if parameter.grad is not None]
    assert len(together) == len(separate) == 9  # three per layer
    for one, other in zip(together, separate, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_one_projection_per_forward_pass_serves_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    attach_crma(model)
    shapes = []

    def counted(mix_logits: torch.Tensor, iterations: int) -> torch.Tensor:
        shapes.append(tuple(mix_logits.shape))
        return sinkhorn_projection(mix_logits, iterations)

    plain = functions("torch", "cpu")
    monkeypatch.setattr("backends.torch.functions._LOADED", {"torch": plain._replace(sinkhorn_projection=counted)})
    model(IDS)
    assert shapes == [(3, 4, 4)]


@pytest.mark.clause("MIX-5")
def test_inference_sees_a_parameter_that_was_set_behind_autograds_back() -> None:
    model = make_model()
    backbone = open_gates(attach_crma(model))
    with torch.no_grad():
        before = model(IDS).logits
        for parameter in backbone.parameters():
            parameter.data.mul_(0.5)  # leaves no trace in the version of the parameter
        assert not torch.equal(model(IDS).logits, before)
        for parameter in backbone.parameters():
            parameter.data.mul_(2.0)
        assert torch.equal(model(IDS).logits, before)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make_model().train()
        backbone = open_gates(attach_crma(model))
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(IDS, labels=IDS).loss.backward()
        gradients.append([parameter.grad for parameter in backbone.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_generation_with_a_cache_equals_generation_without() -> None:
    model = make_model()
    open_gates(attach_crma(model))
    cached, plain = (
        model.generate(IDS, max_new_tokens=8, do_sample=False, use_cache=use_cache) for use_cache in (True, False)
    )
    assert torch.equal(cached, plain)


def test_per_task_lora_beside_the_shared_adapters() -> None:
    model = make_model()
    backbone = open_gates(attach_crma(model))
    peft_model: Any = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"), adapter_name="first")
    peft_model.add_adapter("second", LoraConfig(r=2, target_modules="all-linear"))
    peft_model.set_adapter("second")
    backbone.requires_grad_(True)
    peft_model(IDS, labels=IDS).loss.backward()
    trained = {name for name, p in peft_model.named_parameters() if p.grad is not None}
    assert all(".crma." in name or ".second." in name for name in trained)
    assert sum(".crma." in name for name in trained) == 9
    assert not any("lora" in name and ".crma." in name for name, _ in peft_model.named_parameters())


def test_attaching_to_a_peft_model_reaches_the_same_blocks() -> None:
    peft_model: Any = get_peft_model(make_model(), LoraConfig(r=2, target_modules="all-linear"))
    bare = peft_model(IDS).logits
    backbone = open_gates(attach_crma(peft_model, basis="principal"))
    assert (peft_model(IDS).logits - bare).abs().max() > 1e-2
    backbone.detach_from_model()
    assert torch.equal(peft_model(IDS).logits, bare)


@pytest.mark.clause("INIT-3")
def test_principal_directions_come_from_the_mlp_output_projection() -> None:
    model = make_model()
    weight = model.model.layers[2].mlp.down_proj.weight
    leading, _, right = torch.linalg.svd(weight.detach(), full_matrices=False)
    with torch.no_grad():  # singular values that lie apart, so that each direction is defined
        weight.copy_(leading @ torch.diag(0.5 ** torch.arange(32.0)) @ right)
    backbone = attach_crma(model, reference.AdapterConfig(32, streams=2, rank=3), basis="principal")
    rows = backbone.state().bases[2].double()
    for direction in range(6):
        row = rows[direction % 2, direction // 2]
        assert abs(abs(float(row @ leading[:, direction].double())) - 1) < 1e-5


def test_models_that_cannot_carry_it_are_refused() -> None:
    with pytest.raises(ModelError, match="Linear"):
        attach_crma(torch.nn.Linear(2, 2))
    model = make_model()
    with pytest.raises(ConfigError, match="hidden_size"):
        attach_crma(model, reference.AdapterConfig(64))
    attach_crma(model)
    with pytest.raises(ModelError, match="already attached"):
        attach_crma(model)


@pytest.mark.clause("CERT-1", "CERT-2")
def test_certificates_are_those_of_the_reference() -> None:
    backbone = open_gates(attach_crma(make_model()))
    anchor = backbone.state()
    disturb(backbone)
    now, bounds, moved = backbone.state(), backbone.certificate(), backbone.displacement(anchor)
    assert (bounds.sum_error <= 5e-7).all()
    for layer in range(3):
        first, second = (reference.AdapterParameters(*(t[layer].numpy() for t in state)) for state in (anchor, now))
        largest, smallest = reference.adapter_spectrum(second)
        assert abs(float(bounds.largest[layer]) - largest) < 1e-6
        assert abs(float(bounds.smallest[layer]) - smallest) < 1e-6
        assert abs(float(moved[layer]) - reference.displacement(first, second)) < 1e-6
        assert moved[layer] > 1e-3


@pytest.mark.clause("BUDGET-1", "BUDGET-2")
@pytest.mark.parametrize("size", [0.01, 0.5, 20.0])
def test_the_displacement_budget_holds_and_lets_alone_what_is_inside(size: float) -> None:
    backbone = open_gates(attach_crma(make_model()))
    anchor = backbone.state()
    disturb(backbone, size)
    moved, before = backbone.displacement(anchor), backbone.state()
    delta = float(moved.median())
    fraction = backbone.limit_displacement(anchor, delta)
    after = backbone.state()
    for layer in range(3):
        if moved[layer] <= delta:
            assert fraction[layer] == 1
            assert all(torch.equal(a[layer], b[layer]) for a, b in zip(after, before, strict=True))
        else:
            assert 0 < fraction[layer] < 1
            assert all(not torch.equal(a[layer], b[layer]) for a, b in zip(after, before, strict=True))
    assert (backbone.displacement(anchor) <= delta + 1e-6).all()
    assert 0 < int((fraction < 1).sum()) < 3


def test_a_budget_that_is_not_positive_is_refused() -> None:
    backbone = attach_crma(make_model())
    with pytest.raises(ConfigError, match="delta"):
        backbone.limit_displacement(backbone.state(), 0.0)


def test_parameters_that_are_not_finite_have_no_certificate() -> None:
    backbone = attach_crma(make_model())
    with torch.no_grad():
        backbone.parameter_groups()["mixing"][1][0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="mix_logits"):
        backbone.certificate()


@pytest.mark.clause("CERT-1", "CERT-2")
def test_certificates_come_with_names_and_the_worst_layer_first() -> None:
    backbone = open_gates(attach_crma(make_model()))
    anchor = backbone.state()
    with torch.no_grad():
        backbone.parameter_groups()["basis"][1].add_(0.3)
        backbone.parameter_groups()["basis"][2].add_(0.1)
    plain, measured = backbone.certificate(), backbone.certificate(anchor)
    assert plain.displacement is None
    assert measured.displacement is not None
    assert torch.equal(measured.displacement, backbone.displacement(anchor))
    rows = measured.worst_first()
    assert [row.layer for row in rows] == [1, 2, 0]
    assert [row.name for row in rows] == ["model.layers.1", "model.layers.2", "model.layers.0"]
    for row in rows:
        assert row.smallest == measured.smallest[row.layer]
        assert row.displacement == measured.displacement[row.layer]
    without_anchor = [row.smallest for row in plain.worst_first()]
    assert without_anchor == sorted(without_anchor)
    head, *lines = str(measured).splitlines()
    assert head.split()[0] == "layer"
    assert [line.split()[0] for line in lines] == [row.name for row in rows]
    assert f"{rows[0].displacement:.6f}" in lines[0]


def test_a_layer_that_breaks_a_bound_comes_first() -> None:
    backbone = open_gates(attach_crma(make_model()))
    anchor = backbone.state()
    disturb(backbone)
    measured = backbone.certificate(anchor)
    last = measured.worst_first()[-1].layer
    broken = measured.mixing_norm.clone()
    broken[last] += 1e-3
    first = measured._replace(mixing_norm=broken).worst_first()[0]
    assert first.layer == last
    assert abs(first.excess - 1e-3) < 1e-5
    assert measured.worst_first()[0].excess == 0

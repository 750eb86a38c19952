"""CRMA together with PEFT's LoRA adapters, one per task: what each of the two must leave alone."""

import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("peft")
pytest.importorskip("transformers")

from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open

from backends.torch import CRMAAdapter, CRMABackbone, StreamMoments, attach_crma
from backends.torch.conftest import FAMILIES, IDS, activate, same_state, tiny_model
from reference.errors import ModelError


def lora() -> LoraConfig:
    return LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)  # at work from the start


def with_two_tasks(family: str = "llama") -> tuple[Any, CRMABackbone]:
    """Attached, then wrapped, then a second task; the second is active."""
    model = tiny_model(family)
    backbone = activate(attach_crma(model))
    peft_model: Any = get_peft_model(model, lora(), adapter_name="first")
    peft_model.add_adapter("second", lora())
    peft_model.set_adapter("second")
    return peft_model.eval(), backbone


def alone(family: str = "llama") -> Any:
    """With CRMA, and no LoRA."""
    model = tiny_model(family)
    activate(attach_crma(model))
    return model


def logits(peft_model: Any, *tasks: str) -> list[torch.Tensor]:
    found = []
    for task in tasks:
        peft_model.set_adapter(task)
        found.append(peft_model(IDS).logits.detach())
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_does_not_touch_the_adapters(family: str) -> None:
    names = []
    for attached in (False, True):
        model = tiny_model(family)
        if attached:
            attach_crma(model)
        peft_model: Any = get_peft_model(model, lora())
        names.append([name for name, _ in peft_model.named_parameters() if "lora_" in name])
    assert names[0] == names[1] != []


def test_get_peft_model_freezes_the_adapters_and_one_call_brings_them_back() -> None:
    peft_model, backbone = with_two_tasks()
    assert not any(parameter.requires_grad for parameter in backbone.parameters())  # the pitfall
    backbone.requires_grad_(True)  # the remedy, as attach_crma documents it
    for task in ("first", "second"):
        peft_model.set_adapter(task)
        assert all(parameter.requires_grad for parameter in backbone.parameters())
        trained = {name for name, parameter in peft_model.named_parameters() if parameter.requires_grad}
        assert all(".crma." in name or f".{task}." in name for name in trained)
        peft_model.zero_grad()
        peft_model(IDS, labels=IDS).loss.backward()
        reached = {name for name, p in peft_model.named_parameters() if p.grad is not None and p.grad.any()}
        assert reached == trained
    peft_model.add_adapter("third", lora())
    assert all(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_before_and_after_get_peft_model_are_the_same(family: str) -> None:
    found = []
    for crma_first in (True, False):
        torch.manual_seed(0)
        model = tiny_model(family)
        basis: Any = "principal" if FAMILIES[family][2] else "random"
        backbone = attach_crma(model, basis=basis) if crma_first else None
        torch.manual_seed(3)
        peft_model: Any = get_peft_model(model, lora()).eval()
        backbone = activate(backbone or attach_crma(peft_model, basis=basis))
        found.append((peft_model(IDS).logits, backbone.state(), backbone.base_model_sha256))
        with backbone.disabled():
            bare = peft_model(IDS).logits
        assert (found[-1][0] - bare).abs().max() > 1e-2
    assert torch.equal(found[0][0], found[1][0])
    assert same_state(found[0][1], found[1][1])
    assert found[0][2] == found[1][2]


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "gpt2"])
def test_files_per_task_hold_lora_only_and_bring_back_every_bit(family: str, tmp_path: Path) -> None:
    peft_model, backbone = with_two_tasks(family)
    first, second = logits(peft_model, "first", "second")
    with peft_model.disable_adapter():
        shared_only = peft_model(IDS).logits
    assert not torch.equal(first, second)
    peft_model.save_pretrained(tmp_path)
    backbone.save(tmp_path / "crma.safetensors")
    for task in ("first", "second"):
        with safe_open(tmp_path / task / "adapter_model.safetensors", "pt") as file:
            assert all("lora_" in key and "crma" not in key for key in file.keys())  # noqa: SIM118  # no mapping

    base = tiny_model(family)
    other = attach_crma(base, seed=9)
    other.load(tmp_path / "crma.safetensors")
    again: Any = PeftModel.from_pretrained(base, str(tmp_path / "first"), adapter_name="first")
    again.load_adapter(str(tmp_path / "second"), adapter_name="second")
    again.eval()
    assert all(map(torch.equal, logits(again, "first", "second"), (first, second)))
    with again.disable_adapter():
        assert torch.equal(again(IDS).logits, shared_only)


def test_disabling_lora_leaves_crma_and_disabling_crma_leaves_lora() -> None:
    peft_model, backbone = with_two_tasks()
    both = peft_model(IDS).logits
    with peft_model.disable_adapter():
        crma_only = peft_model(IDS).logits
        with backbone.disabled():
            neither = peft_model(IDS).logits
    with backbone.disabled():
        lora_only = peft_model(IDS).logits
    assert torch.equal(neither, tiny_model("llama")(IDS).logits)
    assert torch.equal(crma_only, alone()(IDS).logits)
    different = [both, crma_only, lora_only, neither]
    assert all((one - two).abs().max() > 1e-2 for i, one in enumerate(different) for two in different[:i])


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_merging_lora_keeps_crma(family: str) -> None:
    peft_model, backbone = with_two_tasks(family)
    (before,) = logits(peft_model, "first")
    state = backbone.state()
    merged = peft_model.merge_and_unload()
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    assert same_state(backbone, state)
    assert (merged(IDS).logits - before).abs().max() < 1e-4 * before.abs().max()
    with backbone.disabled():
        assert (merged(IDS).logits - before).abs().max() > 1e-2
    backbone.detach_from_model()
    assert not any(".crma." in name for name, _ in merged.named_parameters())


def test_what_is_taken_away_leaves_the_rest() -> None:
    """A task, then CRMA and in another model LoRA."""
    peft_model, backbone = with_two_tasks()
    backbone.requires_grad_(True)
    (first,) = logits(peft_model, "first")
    peft_model.delete_adapter("second")
    assert torch.equal(peft_model(IDS).logits, first)
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    with backbone.disabled():
        lora_only = peft_model(IDS).logits
    backbone.detach_from_model()
    assert torch.equal(peft_model(IDS).logits, lora_only)
    assert not any(".crma." in name for name in peft_model.state_dict())
    peft_model(IDS, labels=IDS).loss.backward()

    peft_model, backbone = with_two_tasks()
    model = peft_model.unload()
    assert torch.equal(model(IDS).logits, alone()(IDS).logits)
    backbone.detach_from_model()
    assert torch.equal(model(IDS).logits, tiny_model("llama")(IDS).logits)
    assert list(model.state_dict()) == list(tiny_model("llama").state_dict())


def test_checkpointing_under_peft() -> None:
    peft_model, backbone = with_two_tasks("mistral")
    backbone.requires_grad_(True)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            peft_model.gradient_checkpointing_enable({"use_reentrant": False})
        peft_model.train().zero_grad()
        peft_model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in peft_model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())
    assert sum(".crma." in name for name in gradients[0]) == 6


def test_preparing_for_low_bit_training_keeps_the_adapters_usable() -> None:
    from peft import prepare_model_for_kbit_training

    model = tiny_model("llama")
    backbone = activate(attach_crma(model))
    active = model(IDS).logits
    prepared: Any = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    peft_model: Any = get_peft_model(prepared, LoraConfig(r=2, target_modules="all-linear")).eval()
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}
    assert torch.equal(peft_model(IDS).logits, active)
    backbone.requires_grad_(True)
    peft_model(IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


@pytest.mark.clause("ERR-4")
@pytest.mark.parametrize("told", [None, True, False])
def test_adapters_that_peft_froze_are_told_of_while_lora_trains(told: bool | None) -> None:
    model = tiny_model("llama")
    backbone = attach_crma(model)
    peft_model: Any = get_peft_model(model, lora())
    if told is not None:
        backbone.requires_grad_(told)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        peft_model.eval()(input_ids=IDS)
        with torch.no_grad():
            peft_model.train()(input_ids=IDS)
        assert not [warning for warning in caught if "CRMA" in str(warning.message)]
        peft_model.train()(input_ids=IDS)
    messages = [str(warning.message) for warning in caught if "CRMA" in str(warning.message)]
    assert len(messages) == (1 if told is None else 0)


#: how PEFT puts copies in the place of what stands behind a block
COPIES: dict[str, dict[str, Any]] = {
    "adapters": {"target_modules": ["q_proj"], "modules_to_save": ["crma"]},
    "a block": {"target_modules": ["q_proj"], "modules_to_save": ["layers.1"]},
    "the decoder": {"target_modules": ["lm_head"], "modules_to_save": ["model"]},
    "target_parameters": {"target_modules": ["q_proj"], "target_parameters": ["crma.basis"]},
}
#: what somebody else may do to the blocks
CHANGES: dict[str, Callable[[Any], Any]] = {
    "another adapter": lambda decoder: setattr(decoder.layers[0], "crma", CRMAAdapter(32)),
    "no adapter": lambda decoder: delattr(decoder.layers[1], "crma"),
    "fewer blocks": lambda decoder: setattr(decoder, "layers", decoder.layers[:1]),
    "more blocks": lambda decoder: decoder.layers.append(tiny_model("llama").model.layers[0]),
}


def replaced(how: str) -> tuple[Any, CRMABackbone]:
    """A model in which something else than the adapters of the backbone stands behind a block."""
    model = tiny_model("llama")
    if how == "a second task":
        peft_model: Any = get_peft_model(model, lora())
        backbone = attach_crma(peft_model)
        peft_model.add_adapter("second", LoraConfig(r=2, **COPIES["adapters"]))
        return peft_model, backbone
    backbone = attach_crma(model)
    if how in COPIES:
        return get_peft_model(model, LoraConfig(r=2, **COPIES[how])), backbone
    CHANGES[how](model.model)
    return model, backbone


@pytest.mark.clause("ERR-4")
@pytest.mark.parametrize("how", [*COPIES, "a second task", *CHANGES])
def test_what_replaces_an_adapter_is_refused_wherever_the_backbone_is_used(how: str, tmp_path: Path) -> None:
    spare = attach_crma(tiny_model("llama"))
    state, file = spare.state(), tmp_path / "crma.safetensors"
    moments = StreamMoments(torch.eye(16).expand(len(spare.adapters), 16, 16), 1)
    spare.save(file)
    model, backbone = replaced(how)
    uses = {
        "forward": lambda: model(input_ids=IDS),
        "disabled": lambda: backbone.disabled().__enter__(),
        "prepare": lambda: backbone.prepare().__enter__(),
        "detach_from_model": backbone.detach_from_model,
        "save": lambda: backbone.save(tmp_path / "new.safetensors"),
        "load": lambda: backbone.load(file),
        "state": backbone.state,
        "load_state": lambda: backbone.load_state(state),
        "certificate": backbone.certificate,
        "displacement": lambda: backbone.displacement(state),
        "limit_displacement": lambda: backbone.limit_displacement(state, 0.1),
        "data_displacement": lambda: backbone.data_displacement(state, moments),
        "limit_data_displacement": lambda: backbone.limit_data_displacement(state, moments, 0.1),
        "gather_moments": lambda: backbone.gather_moments(torch.ones(1, 1)).__enter__(),
        "parameter_groups": backbone.parameter_groups,
        "requires_grad_": backbone.requires_grad_,
        "config": lambda: backbone.config,
    }
    accepted = []
    for name, use in uses.items():
        with suppress(ModelError):
            use()
            accepted.append(name)
    assert not accepted
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "more", [{"use_dora": True}, {"trainable_token_indices": [1, 2]}, {"modules_to_save": ["basis"]}]
)
def test_what_leaves_the_adapters_alone_is_taken(more: dict[str, Any]) -> None:
    model = tiny_model("llama")
    backbone = activate(attach_crma(model))
    peft_model: Any = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], **more)).eval()
    active = peft_model(input_ids=IDS).logits
    with backbone.disabled():
        assert not torch.equal(peft_model(input_ids=IDS).logits, active)

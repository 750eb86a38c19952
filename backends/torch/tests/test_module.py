"""The adapters as modules among modules: precision, pickles, the meta device, a vocabulary that grows."""

import copy
import io
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

pytest.importorskip("transformers")

from backends.torch import CRMAAdapter, CRMABackbone, attach_crma, attached_backbone
from backends.torch.conftest import FAMILIES, IDS, activate, everything, same_state, tiny_model
from reference.errors import ModelError, StateFileError


def reloaded(thing: Any) -> Any:
    """Through a pickle and back."""
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.clause("MIX-10")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float32, torch.float64])
@pytest.mark.parametrize("strict", [True, False])
def test_loaded_values_of_a_lower_precision_become_float32(dtype: torch.dtype, strict: bool) -> None:
    model, other = tiny_model("llama"), tiny_model("llama", seed=1)
    backbone = attach_crma(model)
    activate(attach_crma(other))
    values = {name: value.to(dtype) if ".crma." in name else value for name, value in other.state_dict().items()}
    model.load_state_dict(values, assign=True, strict=strict)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for name, parameter in model.named_parameters():
        if ".crma." in name:
            assert parameter.dtype == wide
            assert parameter.requires_grad
            assert torch.equal(parameter, values[name].to(wide))
    model(IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def round_data(adapter: CRMAAdapter) -> None:
    adapter.basis.data = adapter.basis.data.bfloat16()


@pytest.mark.clause("MIX-10", "ERR-4")
@pytest.mark.parametrize(
    "change",
    [
        round_data,
        lambda adapter: setattr(adapter, "basis", nn.Parameter(adapter.basis.detach()[:, :2])),
        lambda adapter: parametrize.register_parametrization(adapter, "basis", nn.Identity()),
        lambda adapter: prune.l1_unstructured(adapter, "basis", amount=0.5),
    ],
    ids=["rounded", "swapped", "parametrized", "pruned"],
)
def test_changed_parameters_are_refused(change: Callable[[Any], Any], tmp_path: Path) -> None:
    model, alone = tiny_model("llama"), CRMAAdapter(32)
    backbone = attach_crma(model)
    change(alone)
    change(backbone.adapters[1])
    file = tmp_path / "crma.safetensors"
    for use in (lambda: alone(torch.ones(3, 32)), lambda: model(IDS), lambda: backbone.save(file)):
        with pytest.raises(ModelError, match="basis of a CRMAAdapter"):
            use()
    assert not list(tmp_path.iterdir())
    if change is round_data:  # the remedy
        backbone.float()
        model(IDS)


@pytest.mark.clause("MIX-10")
@pytest.mark.parametrize("move", ["half", "bfloat16", "float", "double", "share_memory"])
def test_moving_the_whole_model_keeps_at_least_float32(move: str) -> None:
    model = tiny_model("llama")
    backbone = activate(attach_crma(model))
    before = backbone.state()
    getattr(model, move)()
    assert all(torch.equal(a.float(), b) for a, b in zip(backbone.state(), before, strict=True))
    model(IDS)
    model.type(torch.float16)
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}


@pytest.mark.clause("INIT-1", "INIT-2")
def test_start_values_come_back_after_to_empty() -> None:
    adapter = CRMAAdapter(32, seed=3)
    expected = {name: value.clone() for name, value in adapter.state_dict().items()}
    with torch.device("meta"):
        on_meta = CRMAAdapter(32, seed=3)
    model = tiny_model("llama")
    backbone = attach_crma(model, basis="principal", seed=5)
    start = backbone.state()
    activate(backbone)
    for module in (adapter, on_meta, *backbone.adapters):
        module.to_empty(device="cpu")
        for parameter in module.parameters():
            nn.init.constant_(parameter, torch.nan)
        module.reset_parameters()
    for found in (adapter, on_meta):
        assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
    assert same_state(backbone, start)
    model(IDS, labels=IDS).loss.backward()


@pytest.mark.clause("INIT-1")
@pytest.mark.parametrize("place", ["inference_mode", "meta", "init_empty_weights", "no_grad"])
def test_adapters_are_real_and_trainable_wherever_they_are_attached(place: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    expected, model = attach_crma(tiny_model("llama")).state(), tiny_model("llama")
    places: dict[str, Callable[[], Any]] = {
        "inference_mode": torch.inference_mode,
        "meta": lambda: torch.device("meta"),
        "init_empty_weights": accelerate.init_empty_weights,
        "no_grad": torch.no_grad,
    }
    with places[place]():
        backbone = attach_crma(model)
    assert same_state(backbone, expected)
    with torch.inference_mode():
        model(IDS)
    model(IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pickled_model_computes_the_same_with_adapters_of_its_own(family: str) -> None:
    bare, model = tiny_model(family), tiny_model(family)
    bare(IDS)  # a rotary embedding may keep something of a forward pass
    backbone = activate(attach_crma(model))
    bits = model(IDS).logits
    copied = reloaded(model)
    assert torch.equal(copied(IDS).logits, bits)
    own = attached_backbone(copied)
    with own.disabled():
        assert torch.equal(model(IDS).logits, bits)
        assert not torch.equal(copied(IDS).logits, bits)
    own.detach_from_model()
    assert everything(copied) == everything(bare)
    stored: CRMABackbone = reloaded(backbone)
    assert (stored.base_model, stored.base_model_sha256) == (backbone.base_model, backbone.base_model_sha256)
    assert same_state(stored, backbone)


def test_a_pickled_peft_model_and_a_pickled_block() -> None:
    peft = pytest.importorskip("peft")
    model = tiny_model("llama")
    activate(attach_crma(model))
    block = model.model.layers[0]
    assert type(reloaded(block)) is type(copy.copy(block)) is type(block)
    settings = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    wrapped = peft.get_peft_model(model, settings).eval()
    assert torch.equal(reloaded(wrapped)(IDS).logits, wrapped(IDS).logits)


def logits_elsewhere(model: Any, results: Any) -> None:
    torch.set_num_threads(1)
    with torch.no_grad():
        results.put(model(IDS).logits.numpy())


@pytest.mark.slow
def test_another_process_computes_the_same() -> None:
    model = tiny_model("llama")
    activate(attach_crma(model))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=logits_elsewhere, args=(model, results))
    process.start()
    found = results.get(timeout=120)
    process.join()
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(IDS).logits)


@pytest.mark.clause("STATE-2", "STATE-4")
def test_a_state_file_is_of_the_model_as_it_is_when_it_is_written(tmp_path: Path) -> None:
    model = tiny_model("llama")
    backbone = activate(attach_crma(model))
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    backbone.save(old)
    model.resize_token_embeddings(64, mean_resizing=False)
    backbone.save(new)
    backbone.load(new)
    attach_crma(tiny_model("llama", vocab_size=64)).load(new)
    later = tiny_model("llama")
    resized = attach_crma(later)
    later.resize_token_embeddings(64, mean_resizing=False)
    resized.load(new)
    for other in (backbone, resized):
        with pytest.raises(StateFileError, match="vocab_size=60"):
            other.load(old)

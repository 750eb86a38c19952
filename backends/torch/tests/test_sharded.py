"""Adapters under FSDP2, in one process: parameters are shards, whole copies come and go around forward passes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
distributed = pytest.importorskip("torch.distributed")
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from backends.torch import CRMABackbone, attach_crma, load_state
from backends.torch.conftest import IDS, disturb, same_state, tiny_model
from backends.torch.distributed import shard_adapters
from backends.torch.save_pretrained import STATE_FILE, save_with_adapters
from reference.errors import BackendError, ModelError


@pytest.fixture(autouse=True)
def one_process(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def attached() -> tuple[Any, CRMABackbone]:
    model = tiny_model("llama")
    return model, attach_crma(model, gate_logit=1.0)


def sharded(setup: str) -> tuple[Any, CRMABackbone]:
    """``adapters``: as shard_adapters says. ``zero2``: whole copies stay after a forward pass. ``root``: one group."""
    options: dict[str, Any] = {"mesh": init_device_mesh("cpu", (1,))}
    if setup == "zero2":
        options["reshard_after_forward"] = False
    model, backbone = attached()
    if setup in ("adapters", "zero2"):
        shard_adapters(backbone, **options)
    if setup != "root":
        for block in model.model.layers:
            fully_shard(block, **options)
    return fully_shard(model, **options), backbone


@pytest.mark.clause("GRAD-7", "STATE-1")
@pytest.mark.parametrize("setup", ["adapters", "zero2", "blocks", "root"])
def test_nothing_is_lost_after_a_forward_pass_for_evaluation(setup: str) -> None:
    (whole_model, whole), (model, backbone) = attached(), sharded(setup)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, whole_model(IDS).logits)
    model(IDS, labels=IDS).loss.backward()
    whole_model(IDS, labels=IDS).loss.backward()
    for one, other in zip(backbone.parameters(), whole.parameters(), strict=True):
        gradient: Any = one.grad
        assert other.grad is not None
        atol = 1e-5 * float(other.grad.abs().max())
        torch.testing.assert_close(gradient.full_tensor(), other.grad, rtol=1e-4, atol=atol)
    with torch.no_grad():
        model(IDS)
    backbone.load_state(disturb(whole).state())
    model(IDS, labels=IDS).loss.backward()
    assert same_state(backbone, whole)
    assert torch.equal(backbone.certificate().largest, whole.certificate().largest)
    torch.testing.assert_close(model(IDS).logits, whole_model(IDS).logits)


def test_attaching_to_a_sharded_model_is_refused() -> None:
    with pytest.raises(ModelError, match="sharded already"):
        attach_crma(fully_shard(tiny_model("llama"), mesh=init_device_mesh("cpu", (1,))))


@pytest.mark.clause("INIT-1")
def test_start_values_come_back_as_shards() -> None:
    """As after FSDP2's initialization on the meta device."""
    _, backbone = sharded("adapters")
    for adapter in backbone.adapters:
        adapter.to_empty(device="cpu")
        adapter.reset_parameters()  # type: ignore[operator]
    assert hasattr(next(backbone.parameters()), "full_tensor")
    assert same_state(backbone, attached()[1])


@pytest.mark.clause("STATE-1")
def test_a_sharded_model_saves_the_adapters_that_fsdp_gathered(tmp_path: Path) -> None:
    """As Trainer does it: one process alone writes, so that it must not ask the others for their shards."""
    model, backbone = sharded("adapters")
    save_with_adapters(model)
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    expected = backbone.state()
    model.save_pretrained(tmp_path, state_dict=whole)
    assert same_state(load_state(tmp_path / STATE_FILE).state, expected)


@pytest.mark.clause("ERR-4")
def test_copies_that_cannot_be_dropped_are_not_written_to() -> None:
    model, backbone = attached()
    outer: Any = fully_shard(nn.Sequential(model), mesh=init_device_mesh("cpu", (1,)), reshard_after_forward=False)
    with torch.no_grad():
        outer(IDS)
    with pytest.raises(BackendError, match=r"reshard\(\)"):
        backbone.load_state(backbone.state())
    outer.reshard()
    backbone.load_state(backbone.state())

"""Adapters under FSDP2, in one process: parameters are shards, whole copies come and go around forward passes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from backends.torch import CRMABackbone, attach_crma, load_state
from backends.torch.distributed import shard_adapters
from backends.torch.tests.test_backbone import IDS, disturb, make_model, open_gates
from reference.errors import BackendError, ModelError


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    distributed = pytest.importorskip("torch.distributed")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_parameters_sharded_by_fsdp_are_read_set_and_certified(one_process: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    whole_model, model = make_model(), make_model()
    whole, backbone = open_gates(attach_crma(whole_model)), open_gates(attach_crma(model))
    expected = whole_model(IDS).logits
    mesh = init_device_mesh("cpu", (1,))
    for block in model.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert hasattr(next(backbone.parameters()), "full_tensor")
    torch.testing.assert_close(model(IDS).logits, expected)
    model(IDS, labels=IDS).loss.backward()
    whole_model(IDS, labels=IDS).loss.backward()
    for one, other in zip(backbone.parameters(), whole.parameters(), strict=True):
        gradient: Any = one.grad
        assert other.grad is not None
        atol = 1e-5 * float(other.grad.abs().max())
        torch.testing.assert_close(gradient.full_tensor(), other.grad, rtol=1e-4, atol=atol)
    disturb(whole)
    backbone.load_state(whole.state())
    assert all(torch.equal(a, b) for a, b in zip(backbone.state(), whole.state(), strict=True))
    assert torch.equal(backbone.certificate().largest, whole.certificate().largest)
    torch.testing.assert_close(model(IDS).logits, whole_model(IDS).logits)
    sharded = fully_shard(make_model(), mesh=mesh)
    with pytest.raises(ModelError, match="sharded already"):
        attach_crma(sharded)


def sharded(setup: str) -> tuple[Any, CRMABackbone]:
    """``adapters``: as shard_adapters says. ``zero2``: whole copies stay after a forward pass. ``root``: one group."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": False} if setup == "zero2" else {"mesh": mesh}
    model = make_model()
    backbone = open_gates(attach_crma(model))
    if setup != "root":
        shard_adapters(backbone, **options)
        for block in model.model.layers:
            fully_shard(block, **options)
    return fully_shard(model, **options), backbone


@pytest.mark.clause("GRAD-7", "STATE-1")
@pytest.mark.parametrize("setup", ["adapters", "zero2", "root"])
def test_nothing_is_lost_after_a_forward_pass_for_evaluation(one_process: None, setup: str) -> None:
    whole_model = make_model()
    whole = open_gates(attach_crma(whole_model))
    model, backbone = sharded(setup)
    with torch.no_grad():
        model(IDS)
    model(IDS, labels=IDS).loss.backward()
    whole_model(IDS, labels=IDS).loss.backward()
    for one, other in zip(backbone.parameters(), whole.parameters(), strict=True):
        assert isinstance(one.grad, torch.Tensor), setup
        assert isinstance(other.grad, torch.Tensor)
        gradient: Any = one.grad
        atol = 1e-5 * float(other.grad.abs().max())
        torch.testing.assert_close(gradient.full_tensor(), other.grad, rtol=1e-4, atol=atol)
    with torch.no_grad():
        model(IDS)
    disturb(whole)
    backbone.load_state(whole.state())
    model(IDS, labels=IDS).loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(backbone.state(), whole.state(), strict=True))
    torch.testing.assert_close(model(IDS).logits, whole_model(IDS).logits)


@pytest.mark.clause("INIT-1")
def test_start_values_come_back_as_shards(one_process: None) -> None:
    """As after FSDP2's initialization on the meta device."""
    _, backbone = sharded("adapters")
    for adapter in backbone.adapters:
        adapter.to_empty(device="cpu")
        adapter.reset_parameters()  # type: ignore[operator]
    assert hasattr(next(backbone.parameters()), "full_tensor")
    start = attach_crma(make_model()).state()
    assert all(torch.equal(a, b) for a, b in zip(backbone.state(), start, strict=True))


@pytest.mark.clause("STATE-1")
def test_a_sharded_model_saves_the_adapters_that_fsdp_gathered(one_process: None, tmp_path: Path) -> None:
    """As Trainer does it: one process alone writes, so that it must not ask the others for their shards."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    from backends.torch.save_pretrained import STATE_FILE, save_with_adapters

    model, backbone = sharded("adapters")
    save_with_adapters(model)
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    expected = backbone.state()
    model.save_pretrained(tmp_path, state_dict=whole)
    stored = load_state(tmp_path / STATE_FILE).state
    assert all(torch.equal(a, b) for a, b in zip(expected, stored, strict=True))


@pytest.mark.clause("ERR-4")
def test_copies_that_cannot_be_dropped_are_not_written_to(one_process: None) -> None:
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = make_model()
    backbone = attach_crma(model)
    outer: Any = fully_shard(nn.Sequential(model), mesh=init_device_mesh("cpu", (1,)), reshard_after_forward=False)
    with torch.no_grad():
        outer(IDS)
    with pytest.raises(BackendError, match=r"reshard\(\)"):
        backbone.load_state(backbone.state())
    outer.reshard()
    backbone.load_state(backbone.state())

"""M and alpha made for all layers at once: when they serve, and when each adapter must project for itself."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from backends.torch import CRMAAdapter, CRMABackbone, attach_crma, sinkhorn_projection
from backends.torch.conftest import IDS, tiny_model
from backends.torch.functions import functions
from backends.torch.preparation import prepare_adapters
from reference.errors import BackendError


def open_model(reentrant: bool | None = None) -> tuple[Any, CRMABackbone]:
    """With gradient checkpointing, reentrant or not, or without it."""
    model = tiny_model("llama").requires_grad_(False)
    backbone = attach_crma(model, gate_logit=1.0)
    if reentrant is not None:
        model.train().gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
    return model, backbone


def gradients(model: Any, backbone: CRMABackbone) -> list[torch.Tensor]:
    backbone.zero_grad()
    model(IDS, labels=IDS).loss.backward()
    return gradients_of(backbone)


def gradients_of(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]


def assert_same(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(actual) == len(expected) == 6
    for one, other in zip(actual, expected, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@pytest.mark.clause("GRAD-7")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_of_every_layer(reentrant: bool) -> None:
    expected = gradients(*open_model())
    model, backbone = open_model(reentrant)
    assert_same(gradients(model, backbone), expected)
    assert_same(gradients(model, backbone), expected)


@pytest.mark.clause("GRAD-7")
@pytest.mark.parametrize("reentrant", [None, False])
def test_inference_between_forward_and_backward(reentrant: bool | None) -> None:
    """As in reinforcement learning: the reference model, or a sample, while a graph waits for its backward pass."""
    expected = gradients(*open_model())
    model, backbone = open_model(reentrant)
    loss = model(IDS, labels=IDS).loss
    with torch.no_grad():
        model(IDS)
    loss.backward()
    assert_same(gradients_of(backbone), expected)


@pytest.mark.clause("GRAD-7")
def test_one_projection_serves_all_layers_with_the_gradients_of_separate_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model, backbone = open_model()
    shapes = []

    def counted(mix_logits: torch.Tensor, iterations: int) -> torch.Tensor:
        shapes.append(tuple(mix_logits.shape))
        return sinkhorn_projection(mix_logits, iterations)

    plain = functions("torch", "cpu")
    monkeypatch.setattr("backends.torch.functions._LOADED", {"torch": plain._replace(sinkhorn_projection=counted)})
    together = gradients(model, backbone)
    assert shapes == [(2, 4, 4)]
    monkeypatch.setattr("backends.torch.attach.prepare_adapters", lambda adapters: None)
    assert_same(together, gradients(model, backbone))
    assert shapes[1:] == [(4, 4)] * 2


@pytest.mark.clause("GRAD-7")
def test_what_was_prepared_without_a_graph_does_not_cut_off_the_gradients() -> None:
    _, backbone = open_model()
    with torch.no_grad(), backbone.prepare(), torch.enable_grad():
        backbone.adapters[0](torch.randn(3, 32)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in backbone.adapters[0].parameters())


def test_a_copy_takes_nothing_that_was_prepared() -> None:
    """Which has a graph, so that it cannot be copied, and would outlive a change."""
    _, backbone = open_model()
    adapter, x = backbone.adapters[0], torch.randn(3, 32)
    with backbone.prepare():
        twin: Any = copy.deepcopy(adapter)
    by_data(twin)
    assert torch.equal(twin(x), copy.deepcopy(twin)(x))
    assert not torch.equal(twin(x), adapter(x))


@pytest.mark.clause("MIX-2")
def test_other_parameters_in_a_functional_call_are_used() -> None:
    model, backbone = open_model()
    _, other = open_model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(-1.5)
    x = torch.randn(3, 32)
    adapter, changed = backbone.adapters[0], other.adapters[0]
    model(IDS)
    torch.testing.assert_close(
        torch.func.functional_call(adapter, dict(changed.named_parameters()), (x,)), changed(x), rtol=0, atol=0
    )
    adapter.load_state_dict(changed.state_dict(), assign=True)
    torch.testing.assert_close(adapter(x), changed(x), rtol=0, atol=0)


@pytest.mark.clause("MIX-2")
def test_one_adapter_that_is_disabled_does_not_leave_the_others_behind() -> None:
    model, backbone = open_model()
    first = backbone.adapters[0]
    assert isinstance(first, CRMAAdapter)
    first.enabled = False
    with torch.no_grad():
        before = model(IDS).logits
        for parameter in backbone.parameters():
            parameter.data.mul_(0.5)
        assert not torch.equal(model(IDS).logits, before)


def test_each_device_projects_its_own_layers() -> None:
    """The meta device stands for a second GPU."""
    here, there = [CRMAAdapter(16, seed=seed) for seed in (0, 1)], [CRMAAdapter(16).to("meta") for _ in range(2)]
    prepare_adapters([here[0], there[0], there[1], here[1]])
    for adapter, device in [(here[0], "cpu"), (here[1], "cpu"), (there[0], "meta"), (there[1], "meta")]:
        prepared = adapter._prepared
        assert prepared is not None
        assert prepared.mixing.device.type == prepared.strength.device.type == device
    x = torch.randn(3, 16)
    assert torch.equal(here[1](x), CRMAAdapter(16, seed=1)(x))


def step_of_fused_adamw(adapter: CRMAAdapter) -> None:
    adapter(torch.randn(3, 32)).square().sum().backward()
    torch.optim.AdamW(adapter.parameters(), lr=0.5, fused=True).step()


def by_data(adapter: CRMAAdapter) -> None:
    for parameter in adapter.parameters():
        parameter.data.mul_(-0.5)


def of_each(change: Callable[[CRMAAdapter, str, Any, torch.Tensor], Any]) -> Callable[[CRMAAdapter], None]:
    """``change(adapter, name, parameter, value)`` for each parameter, with the value that it is to have."""

    def change_all(adapter: CRMAAdapter) -> None:
        for name, parameter in list(adapter.named_parameters()):
            change(adapter, name, parameter, parameter.detach() * -0.5)

    return change_all


CHANGES: dict[str, Callable[[CRMAAdapter], None]] = {
    "fused AdamW": step_of_fused_adamw,
    "data": by_data,
    "data of another tensor": of_each(lambda adapter, name, old, new: setattr(old, "data", new)),
    "vector": of_each(lambda adapter, name, old, new: nn.utils.vector_to_parameters(new.flatten(), [old])),
    "swapped tensors": of_each(lambda adapter, name, old, new: torch.utils.swap_tensors(old, nn.Parameter(new))),
    "new parameters": of_each(lambda adapter, name, old, new: setattr(adapter, name, nn.Parameter(new))),
    # as an average of weights is swapped in: through the storage, which a version does not see
    "storage": of_each(lambda adapter, name, old, new: old.untyped_storage().copy_(new.untyped_storage())),
    "storage in NumPy": of_each(lambda adapter, name, old, new: np.copyto(old.detach().numpy(), new.numpy())),
}


@pytest.mark.clause("MIX-2")
@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("trained", [True, False])
def test_a_change_by_any_way_is_seen_by_the_next_call_of_an_adapter(how: str, trained: bool) -> None:
    """Whatever the model's last forward pass prepared, with a graph or without, before the change or after it."""
    model, backbone = open_model()
    adapter: Any = backbone.adapters[0]
    x = torch.randn(3, 32)
    with torch.set_grad_enabled(trained):
        loss = model(IDS, labels=IDS).loss
    if trained:
        loss.backward()
    if how == "swapped tensors":
        backbone.zero_grad(set_to_none=True)
    CHANGES[how](adapter)
    fresh = copy.deepcopy(adapter)
    assert torch.equal(adapter(x), fresh(x))
    with torch.no_grad():
        assert torch.equal(adapter(x), fresh(x))
        whole = model(IDS).logits
        assert torch.equal(whole, copy.deepcopy(model)(IDS).logits)
    assert not torch.equal(fresh(x), x)


def test_prepared_by_hand_serves_inside_the_block_alone() -> None:
    adapters = [CRMAAdapter(16, seed=seed) for seed in (0, 1)]
    backbone = CRMABackbone(adapters)
    backbone.prepare()  # enters nothing
    assert adapters[0]._prepared is None
    with backbone.prepare():
        assert adapters[1]._prepared is not None
    assert adapters[1]._prepared is None


def test_an_error_ends_the_forward_pass_too() -> None:
    model, backbone = open_model()
    adapter = backbone.adapters[0]
    with pytest.raises(IndexError):
        model(IDS + 10**6)
    hook = model.model.layers[-1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(IDS)
    hook.remove()
    assert isinstance(adapter, CRMAAdapter)
    assert adapter._prepared is None
    by_data(adapter)
    x = torch.randn(3, 32)
    assert torch.equal(adapter(x), copy.deepcopy(adapter)(x))


# A step of another graph would first end this one, and swapping needs what holds no graph.
@pytest.mark.clause("GRAD-7")
@pytest.mark.parametrize("how", [how for how in CHANGES if how not in ("fused AdamW", "swapped tensors")])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_change_between_a_checkpoint_and_its_recomputation_is_refused(how: str, reentrant: bool) -> None:
    model, backbone = open_model(reentrant)
    loss = model(IDS, labels=IDS).loss
    adapter: Any = backbone.adapters[0]
    CHANGES[how](adapter)
    with pytest.raises(BackendError, match="other values in the recomputation"):
        loss.backward()


@pytest.mark.clause("GRAD-7")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_of_an_adapter_alone_beside_those_of_its_model(reentrant: bool) -> None:
    """What recomputes a call does what the call did, whatever the model's passes left behind."""
    model, backbone = open_model(reentrant)
    adapter: Any = backbone.adapters[0]
    value = torch.randn(3, 32)

    def alone(call: Any) -> list[torch.Tensor]:
        adapter.zero_grad()
        x = value.clone().requires_grad_()
        call(x).square().sum().backward()
        assert x.grad is not None
        return [x.grad, *gradients_of(adapter)]

    gradients(model, backbone)
    for _ in range(2):
        expected = alone(adapter)
        gradients(model, backbone)
        for one, other in zip(alone(lambda x: checkpoint(adapter, x, use_reentrant=reentrant)), expected, strict=True):
            assert torch.equal(one, other)
        by_data(adapter)


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_is_not_finite_has_not_changed(reentrant: bool) -> None:
    model, backbone = open_model(reentrant)
    with torch.no_grad():
        backbone.parameter_groups()["gate"][1].fill_(torch.nan)
    assert all(gradient.isnan().any() for gradient in gradients(model, backbone)[:3])


@contextmanager
def forward_pass_of_another_thread(model: Any) -> Iterator[list[torch.Tensor]]:
    """Stands still between the blocks and the head, with everything prepared, while the ``with`` block runs."""
    losses: list[torch.Tensor] = []
    inside, go_on = Event(), Event()

    def wait(*_: Any) -> None:
        inside.set()
        assert go_on.wait(60)

    hook = model.model.layers[0].register_forward_hook(wait)
    thread = Thread(target=lambda: losses.append(model(IDS, labels=IDS).loss))
    thread.start()
    assert inside.wait(60)
    hook.remove()
    yield losses
    go_on.set()
    thread.join()


@pytest.mark.clause("GRAD-7")
def test_threads_share_no_graph() -> None:
    model, backbone = open_model()
    expected = gradients(model, backbone)
    with forward_pass_of_another_thread(model) as losses:
        backbone.zero_grad()
        alone = backbone.adapters[1]
        assert isinstance(alone, CRMAAdapter)
        alone(torch.randn(3, 32)).sum().backward()  # would free the graph that the other thread has prepared
        backbone.zero_grad()
    losses[0].backward()
    assert_same(gradients_of(backbone), expected)


@pytest.mark.clause("MIX-2")
def test_offloaded_adapters_compute_and_refuse_to_be_read(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model, backbone = open_model()
    backbone.save(tmp_path / "crma.safetensors")
    with torch.no_grad():
        expected = model(IDS).logits
        accelerate.cpu_offload(model, execution_device="cpu")
        torch.testing.assert_close(model(IDS).logits, expected)
    for use in (backbone.state, backbone.certificate, lambda: backbone.load(tmp_path / "crma.safetensors")):
        with pytest.raises(BackendError, match="meta device"):
            use()


def adapter_of(backbone: CRMABackbone) -> CRMAAdapter:
    adapter = backbone.adapters[1]
    assert isinstance(adapter, CRMAAdapter)
    return adapter


def counted_projections(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []

    def counted(mix_logits: torch.Tensor, iterations: int) -> torch.Tensor:
        shapes.append(tuple(mix_logits.shape))
        return sinkhorn_projection(mix_logits, iterations)

    chosen = functions("torch", "cpu")._replace(sinkhorn_projection=counted)
    monkeypatch.setattr("backends.torch.preparation.functions", lambda *_: chosen)
    return shapes


def test_a_block_around_a_generation_projects_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, backbone = open_model()
    shapes = counted_projections(monkeypatch)
    write = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(IDS, **write)
    assert len(shapes) == 5
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):  # generate itself takes no gradients
        shapes.clear()
        with mode(), backbone.prepare():
            assert torch.equal(model.generate(IDS, **write), expected)
        assert len(shapes) <= 2  # at the beginning, and once more where that was with gradients
        assert backbone.adapters[0]._prepared is None
    model.generate(IDS, **write)
    assert len(shapes) > 5  # nothing outlives the block


@pytest.mark.parametrize("how", CHANGES)
def test_a_parameter_that_changes_inside_the_block_is_told_at_its_end(how: str) -> None:
    model, backbone = open_model()

    def change() -> None:
        with torch.no_grad(), backbone.prepare():
            model(IDS)
            with torch.enable_grad():
                CHANGES[how](adapter_of(backbone))
            model(IDS)

    with pytest.raises(BackendError, match="inside the block of prepare"):
        change()
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, copy.deepcopy(model)(IDS).logits)


def test_a_parameter_that_has_another_value_for_a_while_is_told_too() -> None:
    model, backbone = open_model()
    state = backbone.state()

    def change() -> None:
        with torch.no_grad(), backbone.prepare():
            model(IDS)
            backbone.load_state(state._replace(bases=2 * state.bases))
            backbone.load_state(state)

    with pytest.raises(BackendError, match="inside the block of prepare"):
        change()


def test_training_inside_the_block_has_its_own_graph() -> None:
    model, backbone = open_model()
    expected = gradients(model, backbone)
    with backbone.prepare():
        with torch.no_grad():
            before = model(IDS).logits
        backbone.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        assert_same(gradients_of(backbone), expected)
        with torch.no_grad(), backbone.prepare():  # one inside the other
            assert torch.equal(model(IDS).logits, before)
        with torch.no_grad(), backbone.disabled():
            assert not torch.equal(model(IDS).logits, before)
        with torch.no_grad():
            assert torch.equal(model(IDS).logits, before)


def test_an_error_inside_the_block_stays_what_it_is() -> None:
    _, backbone = open_model()

    def fail() -> None:
        with torch.no_grad(), backbone.prepare():
            by_data(adapter_of(backbone))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert adapter_of(backbone).promise is None


def test_other_parameters_inside_the_block_are_used() -> None:
    """By torch.func.functional_call, as in the tests of a whole model under other parameters."""
    model, backbone = open_model()
    gates = backbone.state().gate_logits
    changed = {f"model.layers.{layer}.crma.gate_logit": gates[layer : layer + 1] + 2 for layer in (0, 1)}
    with torch.no_grad():
        expected = torch.func.functional_call(model, changed, (IDS,)).logits
        with backbone.prepare():
            assert torch.equal(torch.func.functional_call(model, changed, (IDS,)).logits, expected)
            assert not torch.equal(model(IDS).logits, expected)

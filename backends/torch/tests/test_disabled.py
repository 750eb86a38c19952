"""``with backbone.disabled():`` — blocks that overlap, threads, tasks, checkpoints, torch.compile."""

import asyncio
import copy
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError, checkpoint

from backends.torch import CRMAAdapter, CRMABackbone, attach_crma
from backends.torch.conftest import IDS, tiny_model


class Subject:
    """A model with CRMA, and what it answers with and without."""

    def __init__(self, *, reentrant: bool | None = None, change: Callable[[CRMABackbone], None] | None = None) -> None:
        self.model: Any = tiny_model("llama").train()
        self.backbone = attach_crma(self.model, gate_logit=1.0)
        if change is not None:
            change(self.backbone)
        if reentrant is not None:
            self.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            self.model.enable_input_require_grads()
        self.on = self.answer()
        with self.backbone.disabled():
            self.off = self.answer()
        assert not torch.equal(self.on, self.off)

    def answer(self) -> Tensor:
        with torch.no_grad():
            return self.model(IDS).logits.clone()

    def is_on(self) -> bool:
        answer = self.answer()
        assert torch.equal(answer, self.on) or torch.equal(answer, self.off)
        return torch.equal(answer, self.on)

    def loss(self) -> Tensor:
        return self.model(IDS, labels=IDS).loss

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        self.model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject()


def in_a_thread(call: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_blocks_overlap_and_end_in_any_order(subject: Subject, order: tuple[int, ...]) -> None:
    blocks = [subject.backbone.disabled() for _ in range(3)]
    for block in blocks:
        block.__enter__()
        assert not subject.is_on()
    for index in order:
        assert not subject.is_on()
        blocks[index].__exit__(None, None, None)
    assert subject.is_on()


def test_an_error_ends_a_block_and_an_adapter_that_was_switched_off_stays_off() -> None:
    subject = Subject()
    with pytest.raises(ZeroDivisionError), subject.backbone.disabled():
        raise ZeroDivisionError
    assert subject.is_on()
    for adapter in subject.backbone._layers():
        adapter.enabled = False
    with subject.backbone.disabled():
        assert not subject.is_on()
    assert not subject.is_on()


def test_other_threads_answer_with_crma(subject: Subject) -> None:
    with subject.backbone.disabled():
        assert in_a_thread(subject.is_on)
        assert not subject.is_on()

    def off_there() -> bool:
        with subject.backbone.disabled():
            return not subject.is_on() and in_a_thread(subject.is_on)

    assert in_a_thread(off_there)
    assert subject.is_on()


def test_a_block_may_end_in_another_thread(subject: Subject) -> None:
    """As a generator's does, when it is collected there."""
    block = subject.backbone.disabled()
    block.__enter__()
    in_a_thread(lambda: block.__exit__(None, None, None))
    assert subject.is_on()


def test_a_generator_that_waits_inside_a_block(subject: Subject) -> None:
    def answers() -> Generator[bool]:
        with subject.backbone.disabled():
            yield subject.is_on()
            yield subject.is_on()

    first, second = answers(), answers()
    assert [next(first), next(second), next(first)] == [False] * 3
    first.close()
    second.close()
    assert subject.is_on()


def test_each_task_of_an_event_loop_for_itself(subject: Subject) -> None:
    async def off(entered: asyncio.Event, leave: asyncio.Event) -> bool:
        with subject.backbone.disabled():
            entered.set()
            await leave.wait()
            return subject.is_on()

    async def both() -> tuple[bool, bool]:
        entered, leave = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(off(entered, leave))
        await entered.wait()
        meanwhile = subject.is_on()
        leave.set()
        return meanwhile, await task

    assert asyncio.run(both()) == (True, False)


def open_adapter() -> tuple[CRMAAdapter, CRMABackbone, Tensor]:
    """An adapter of no model, its backbone, and something that it changes."""
    adapter = CRMAAdapter(16).requires_grad_(False)
    adapter.gate_logit.fill_(3.0)
    return adapter, CRMABackbone([adapter]), torch.randn(2, 16)


def test_many_threads_at_once() -> None:
    adapter, backbone, x = open_adapter()
    expected = adapter(x)

    def right(off: bool) -> bool:
        answers = []
        for _ in range(50):
            with backbone.disabled() if off else nullcontext():
                answers.append(adapter(x))
        return all(torch.equal(y, x if off else expected) for y in answers)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(right, [True, False] * 3))
    assert not adapter.blocks


def test_replicas_of_data_parallel_follow_the_thread_that_makes_them(subject: Subject) -> None:
    adapter, x = subject.backbone.adapters[0], torch.randn(2, 32)

    def answer(replica: Any) -> Tensor:
        for name, parameter in adapter.named_parameters():
            setattr(replica, name, parameter)
        return in_a_thread(lambda: replica(x))

    with subject.backbone.disabled():
        off = adapter._replicate_for_data_parallel()
    on = adapter._replicate_for_data_parallel()
    assert torch.equal(answer(off), x)
    assert torch.equal(answer(on), adapter(x))


def test_a_copy_belongs_to_no_block(subject: Subject) -> None:
    with subject.backbone.disabled():
        twin = copy.deepcopy(subject.model)
        with torch.no_grad():
            assert torch.equal(twin(IDS).logits, subject.on)


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-5, atol=1e-6 * float(value.abs().max()))


def assert_recomputed(reentrant: bool | None, change: Callable[[CRMABackbone], None] | None = None) -> None:
    plain = Subject(change=change)
    with plain.backbone.disabled():
        off = plain.gradients(plain.loss())
    on = plain.gradients(plain.loss())
    assert any(not torch.equal(on[name], off[name]) for name in off)

    subject = Subject(reentrant=reentrant, change=change)
    disabled = subject.backbone.disabled
    with disabled():
        loss = subject.loss()
    assert_same(subject.gradients(loss), off)
    loss = subject.loss()
    with disabled():
        assert_same(subject.gradients(loss), on)
        assert_same(subject.gradients(subject.loss()), off)
        without = subject.loss()
    together = subject.gradients(without + 2 * subject.loss())
    assert_same(together, {name: 2 * value + off.get(name, 0) for name, value in on.items()})
    loss = subject.loss()
    with disabled():
        assert_same(in_a_thread(lambda: subject.gradients(loss)), on)


@pytest.mark.clause("GRAD-7")
@pytest.mark.parametrize("reentrant", [None, False, True])
def test_a_checkpoint_recomputes_what_the_forward_pass_did(reentrant: bool | None) -> None:
    assert_recomputed(reentrant)


@pytest.mark.clause("GRAD-7")
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_around_the_whole_model(subject: Subject, reentrant: bool) -> None:
    """Right, or an error: one that is not reentrant cannot tell what it recomputes, and finds other tensors."""

    def loss() -> Any:
        embedded = subject.model.get_input_embeddings()(IDS)
        return checkpoint(lambda e: subject.model(inputs_embeds=e, labels=IDS).loss, embedded, use_reentrant=reentrant)

    on = subject.gradients(subject.loss())
    assert_same(subject.gradients(loss()), on)
    with subject.backbone.disabled():
        off, without = subject.gradients(subject.loss()), loss()
    if reentrant:
        assert_same(subject.gradients(without), off)
    else:
        with pytest.raises(CheckpointError):
            subject.gradients(without)


def test_inside_the_backward_pass(subject: Subject) -> None:
    """A hook that asks the model without CRMA, while the backward pass of another graph runs."""
    seen = []

    def hook(gradient: Tensor) -> None:
        with subject.backbone.disabled():
            seen.append(subject.is_on())
        seen.append(subject.is_on())

    x = torch.ones(2, requires_grad=True)
    x.register_hook(hook)
    x.sum().backward()
    assert seen == [False, True]


@pytest.mark.parametrize("first", ["on", "off"])
def test_what_torch_has_compiled(first: str) -> None:
    """Compiled before the first block or inside one: each call asks anew, also that of another thread."""
    torch._dynamo.reset()
    adapter, backbone, x = open_adapter()
    compiled, expected = torch.compile(lambda x: 2 * adapter(x), backend="eager"), 2 * adapter(x)
    assert not torch.equal(expected, 2 * x)

    def is_on() -> bool:
        y = compiled(x)
        assert torch.equal(y, expected) or torch.equal(y, 2 * x)
        return torch.equal(y, expected)

    if first == "on":
        assert is_on()
    for _ in range(2):
        with backbone.disabled():
            assert not is_on()
            assert in_a_thread(is_on)
            assert not is_on()
        assert is_on()
        assert in_a_thread(is_on)
    torch._dynamo.reset()

"""The baselines within the engine, on cases whose answer is known from the definition of each."""

from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from backends.finetune.conftest import tiny_protocol
from backends.finetune.engines.torch.engine import TorchEngine
from backends.finetune.methods.conditions import parse_condition
from backends.finetune.methods.ewc import ElasticWeightConsolidation, diagonal_fisher
from backends.finetune.protocols.protocol import load_protocol
from backends.finetune.runs.run_folder import PhaseFiles, RunFolder
from backends.finetune.tasks.encoding import IGNORED, Batch
from backends.finetune.tasks.job import Job
from backends.finetune.tasks.task import parse_task_option
from backends.finetune.training.encoded_tasks import EncodedTasks

STEPS = 4


class Trained:
    """An engine with its tasks, and the phases that it has been through."""

    def __init__(self, folder: Path, model: Path, options: list[str], condition: str, *settings: str) -> None:
        tasks = [parse_task_option(option) for option in options]
        self.model, self.run, self.condition = model, RunFolder(folder / "run"), condition
        self.protocol = load_protocol(str(tiny_protocol(folder, model)), settings, tasks=[task.name for task in tasks])
        job = Job(model, self.protocol, parse_condition(condition), 0, tasks)
        self.engine, self.data = TorchEngine(job, "cpu"), EncodedTasks(job)

    def files(self, phase: int) -> PhaseFiles:
        return self.run.files(0, self.condition, phase)

    def batch(self, phase: int, step: int) -> Batch:
        (batch,) = self.data.batches(phase, step, self.data.order(phase)[step])
        return batch

    def train(self, phase: int, steps: int = STEPS) -> None:
        self.engine.begin_phase(phase, STEPS)
        for step in range(steps):
            self.engine.step([self.batch(phase, step)], step, self.data.memory(phase, step))

    def finish(self, phase: int) -> None:
        self.engine.finish_phase(phase, self.data.examples_of(phase, self.protocol.ewc.examples))
        self.engine.save_phase(phase, self.files(phase))

    def merged(self, phases: list[int]) -> Any:
        """The base model with the LoRAs of these phases added to its weights, by hand."""
        model = AutoModelForCausalLM.from_pretrained(self.model, attn_implementation="eager").eval()
        scaling = self.protocol.lora.alpha / self.protocol.lora.rank
        for phase in phases:
            tensors = load_file(self.files(phase).lora / "adapter_model.safetensors")
            for name, a in tensors.items():
                if ".lora_A." in name:
                    layer = model.get_submodule(name.removeprefix("base_model.model.").replace(".lora_A.weight", ""))
                    layer.weight.data += scaling * tensors[name.replace(".lora_A.", ".lora_B.")] @ a
        return model


@pytest.fixture
def trained(tmp_path: Path, tiny_model: Path, tiny_tasks: list[str]) -> Callable[..., Trained]:
    return lambda *arguments: Trained(tmp_path, tiny_model, tiny_tasks, *arguments)


def answer_logits(model: Any, batch: Batch) -> Any:
    with torch.no_grad():
        mask = torch.from_numpy(batch.attention_mask)
        logits = model(input_ids=torch.from_numpy(batch.input_ids), attention_mask=mask).logits[:, :-1]
    return logits[torch.from_numpy(batch.labels)[:, 1:] != IGNORED]


def test_o_lora_answers_with_the_sum_of_all_loras(trained):
    run = trained("o-lora")
    for phase in range(3):
        run.train(phase)
        run.finish(phase)
    expected = answer_logits(run.merged([0, 1, 2]), run.batch(0, 0))
    actual = run.engine._answer_logits(run.batch(0, 0))[0].detach()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert (actual - answer_logits(run.merged([2]), run.batch(0, 0))).abs().max() > 0.1


def test_o_lora_trains_against_the_subspaces_of_all_earlier_tasks(trained):
    run = trained("o-lora")
    for phase in range(2):
        run.train(phase)
        run.finish(phase)
    run.engine.begin_phase(2, STEPS)
    expected = 0.0
    earlier = [load_file(run.files(phase).lora / "adapter_model.safetensors") for phase in range(2)]
    for name, now in run.engine.slot.parameters().items():
        if ".lora_A." in name:
            of_task = [tensors[name.replace(".task.", ".")] for tensors in earlier]
            expected += sum(float((a @ now.detach().mT).square().sum()) for a in of_task)
    assert float(run.engine.method.penalty().detach()) == pytest.approx(0.5 * expected, rel=1e-5)
    assert expected > 0.01


def test_lwf_keeps_what_the_model_answered_before_the_phase(trained):
    run = trained("lwf")
    run.train(0)
    assert run.engine.method.prepare(run.batch(0, 0)) is None  # the first task has nothing to keep
    run.finish(0)
    run.train(1, steps=3)
    batch = run.batch(1, 3)
    before = {name: value.detach().clone() for name, value in run.engine.slot.parameters().items()}
    teacher = run.engine.method.prepare(batch)
    assert all(torch.equal(value, before[name]) for name, value in run.engine.slot.parameters().items())
    torch.testing.assert_close(teacher, answer_logits(run.merged([0]), batch), rtol=1e-4, atol=1e-4)
    student = run.engine._answer_logits(batch)[0].detach()
    assert (teacher - student).abs().max() > 0.1
    soft, hard = (teacher / 2).softmax(-1), (student / 2).log_softmax(-1)
    extra = run.engine.method.batch_loss(teacher, student)
    assert float(extra) == pytest.approx(-float((soft * hard).sum()), rel=1e-5)


def test_ewc_estimates_the_fisher_information_of_the_model_itself(trained):
    """Exact: over every token of the answer and every label, weighted by the model's own probability."""
    run = trained("ewc")
    run.train(0, steps=STEPS)
    parameters = run.engine.slot.parameters()
    example = next(iter(run.data.examples_of(0, run.protocol.ewc.examples)))
    scores = run.engine._answer_logits(example)[0].log_softmax(-1)[:3]  # of three tokens, for the sake of time
    exact = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for token in scores:
        for label, score in enumerate(token):
            gradients = torch.autograd.grad(score, list(parameters.values()), retain_graph=True)
            for total, gradient in zip(exact.values(), gradients, strict=True):
                total += float(token[label].exp()) * gradient.square()
    only_three = np.where(np.cumsum(example.labels != IGNORED, axis=1) <= 3, example.labels, IGNORED)
    short = Batch(example.input_ids, example.attention_mask, only_three)
    baseline = run.engine.method
    assert isinstance(baseline, ElasticWeightConsolidation)
    sampled = baseline._log_likelihoods(repeat(short, 800), torch.Generator().manual_seed(0))
    estimate = diagonal_fisher(parameters, sampled)
    for name, value in exact.items():
        assert float(estimate[name].sum()) == pytest.approx(float(value.sum()), rel=0.2), name


def test_ewc_pulls_towards_the_earlier_task_in_the_measure_of_its_fisher_information(trained):
    run = trained("ewc", "ewc.strength=7.0")
    run.train(0)
    assert run.engine.method.penalty() is None
    run.finish(0)
    generator = torch.Generator().manual_seed(0)
    parameters = run.engine.slot.parameters()
    anchor = {name: value.detach().clone() for name, value in parameters.items()}
    likelihoods = run.engine.method._log_likelihoods(run.data.examples_of(0, run.protocol.ewc.examples), generator)
    fisher = diagonal_fisher(parameters, likelihoods)
    run.train(1)
    expected = sum(
        3.5 * float((fisher[name] * (value.detach() - anchor[name]).square()).sum())
        for name, value in parameters.items()
    )
    assert float(run.engine.method.penalty().detach()) == pytest.approx(expected, rel=1e-4)
    assert expected > 0


def test_replay_adds_stored_examples_of_earlier_tasks_and_of_no_other(trained):
    run = trained("replay", "replay.memory_per_task=2", "replay.batch_size=4")
    of_task = [{example.ids for example in examples} for examples in run.data.train]
    replayed: set[tuple[int, ...]] = set()
    assert len(run.batch(0, 0).input_ids) == 3
    for step in range(STEPS):
        batch = run.batch(2, step)
        rows = [tuple(ids[mask == 1]) for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
        assert len(rows) == 3 + 4
        assert all(row in of_task[2] for row in rows[:3])
        assert all(row in of_task[0] | of_task[1] for row in rows[3:])
        replayed |= set(rows[3:])
    assert len(replayed & of_task[0]) == len(replayed & of_task[1]) == 2


def test_a_gem_takes_from_the_step_what_would_raise_the_loss_on_the_memory(trained):
    """The step's gradients before clipping, against the two gradients computed by hand."""
    run = trained("a-gem", "a_gem.memory_per_task=3", "a_gem.batch_size=3")
    assert run.data.memory(0, 0) is None  # the first task has nothing to keep
    run.train(0)
    run.finish(0)
    run.train(1)
    engine, of_task = run.engine, {example.ids for example in run.data.train[0]}
    conflicts = 0
    for step in range(STEPS):
        batch, memory = run.batch(1, step), run.data.memory(1, step)
        rows = [tuple(ids[mask == 1]) for ids, mask in zip(memory.input_ids, memory.attention_mask, strict=True)]
        assert len(rows) == 3
        assert set(rows) <= of_task
        parameters = list(engine.slot.parameters().values())
        mean_losses = [engine._loss(part)[0] / part.answer_tokens for part in (batch, memory)]
        of_step, of_memory = (torch.autograd.grad(loss, parameters) for loss in mean_losses)
        own, reference = (torch.cat([part.flatten() for part in parts]) for parts in (of_step, of_memory))
        product = float(own @ reference)
        conflicts += product < 0
        expected = own if product >= 0 else own - product / float(reference @ reference) * reference
        engine._backward(batch, batch.answer_tokens)
        engine._adjust(memory)
        found = torch.cat([parameter.grad.flatten() for parameter in parameters])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert float(found @ reference) >= -1e-6 * float(found.norm() * reference.norm())
        engine.optimizer.zero_grad(set_to_none=True)
    assert conflicts, "a step that would have raised the loss on the memory"


def test_full_trains_every_parameter_and_at_its_own_rate_after_the_first_task(trained):
    run = trained("full", "full.learning_rate=1e-2", "full.later_rate_factor=0.5")
    before = {name: value.detach().clone() for name, value in run.engine.model.named_parameters()}
    run.train(0)
    assert all(not torch.equal(value, before[name]) for name, value in run.engine.model.named_parameters())
    assert [group.learning_rate for group in run.engine.settings.values()] == [1e-2]
    run.engine.begin_phase(1, STEPS)
    assert [group.learning_rate for group in run.engine.settings.values()] == [5e-3]


@pytest.mark.parametrize("condition", ["naive", "modular", "lwf", "o-lora", "full"])
def test_batches_of_one_step_and_examples_of_one_row_weigh_every_answer_token_alike(trained, condition):
    """The same four examples of unequal length: at once; as 1 + 3 accumulated; and packed into two rows."""
    run = trained(condition)
    run.train(0)
    run.finish(0)
    run.engine.begin_phase(1, 10)
    examples = [
        type(example)(example.ids[: len(example.ids) - 2 * index], example.answer_start)
        for index, example in enumerate(run.data.train[1][:4])
    ]
    engine = run.engine

    def gradients(*batches: Batch) -> tuple[float, list[Any]]:
        tokens = sum(batch.answer_tokens for batch in batches)
        loss = float(sum(engine._backward(batch, tokens) for batch in batches)) / tokens
        parameters = [parameter for group in engine._groups().values() for parameter in group]
        found = [parameter.grad.clone() for parameter in parameters]
        nn.Module.zero_grad(engine.model)
        engine.optimizer.zero_grad(set_to_none=True)
        return loss, found

    loss, expected = gradients(run.data.encoder.batch([[example] for example in examples]))
    accumulated = gradients(
        run.data.encoder.batch([[examples[0]]]), run.data.encoder.batch([[example] for example in examples[1:]])
    )
    packed = gradients(run.data.encoder.batch([examples[:1], examples[1:]]))
    largest = max(float(gradient.abs().max()) for gradient in expected)
    assert largest > 1e-3
    for other_loss, other in (accumulated, packed):
        assert other_loss == pytest.approx(loss, rel=1e-5)
        for one, two in zip(expected, other, strict=True):
            assert float((one - two).abs().max()) <= 1e-5 * largest

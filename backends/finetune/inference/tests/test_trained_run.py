"""After a session, the registry answers with exactly what the session measured."""

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch

from backends.finetune.inference.registry import AdapterRegistry
from backends.finetune.runs.results import read_results
from backends.finetune.tasks.encoding import IGNORED, collate, encode
from backends.finetune.tasks.task import Example, parse_task_option


def holdout_loss(registry: AdapterRegistry, examples: tuple[Example, ...]) -> float:
    """Mean nats per answer token."""
    batch = collate(encode(examples, registry.tokenizer, 48, task="holdout"), 0)
    ids, mask, labels = (torch.from_numpy(array) for array in (batch.input_ids, batch.attention_mask, batch.labels))
    with torch.no_grad():
        logits = registry.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    counted = labels[:, 1:] != IGNORED
    return float(torch.nn.functional.cross_entropy(logits[counted], labels[:, 1:][counted]))


def test_the_registry_has_the_losses_of_the_session(
    finetune_command: Callable[..., list[str]],
    crma: Callable[..., tuple[int, str, str]],
    tiny_tasks: list[str],
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    code, _, error = crma(finetune_command(run, "--conditions", "naive", "modular"))
    assert code == 0, error
    results = read_results(run)
    for condition in ("naive", "modular"):
        registry = AdapterRegistry.from_run(run, condition=condition)
        recorded = results.phases[condition, 0, 2].holdout
        for task in (parse_task_option(option) for option in tiny_tasks):
            registry.use(task.name)
            own = holdout_loss(registry, task.holdout)
            assert own == pytest.approx(recorded[task.name], rel=1e-5)
            if condition == "modular":
                registry.use(None)
                assert holdout_loss(registry, task.holdout) > own + 0.1  # it has learned something
                registry.use(task.name)
                with registry.without_crma():
                    assert holdout_loss(registry, task.holdout) != pytest.approx(own, rel=1e-3)

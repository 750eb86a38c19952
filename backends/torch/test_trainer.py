"""transformers.Trainer resumes with the adapters that it stopped with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate")
from transformers import Trainer, TrainerCallback, TrainingArguments

from backends.torch import attach_crma
from backends.torch.conftest import tiny_model
from backends.torch.trainer import STATE_FILE, CRMACallback
from reference.errors import NonFiniteError, StateFileError

DATA = [{"input_ids": row, "labels": row} for row in torch.arange(3, 35).reshape(8, 4)]


def trainer(folder: Path, steps: int, callback: bool = True) -> tuple[Any, Any]:
    model = tiny_model("llama").requires_grad_(False)
    backbone = attach_crma(model)
    arguments = TrainingArguments(
        str(folder), max_steps=steps, save_steps=2, learning_rate=0.1, per_device_train_batch_size=2, report_to=[],
        use_cpu=True, disable_tqdm=True, logging_strategy="no", save_strategy="steps", lr_scheduler_type="constant",
    )  # fmt: skip
    callbacks: list[TrainerCallback] = [CRMACallback(backbone)] if callback else []
    return Trainer(model=model, args=arguments, train_dataset=DATA, callbacks=callbacks), backbone


@pytest.mark.clause("STATE-1")
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole, expected = trainer(tmp_path / "whole", 4)
    start = expected.state()
    whole.train()
    first, _ = trainer(tmp_path / "parts", 2)
    first.train()
    second, resumed = trainer(tmp_path / "parts", 4)
    second.train(resume_from_checkpoint=True)
    for begun, one, other in zip(start, resumed.state(), expected.state(), strict=True):
        assert not torch.equal(begun, one)
        assert torch.equal(one, other)


@pytest.mark.clause("STATE-4")
def test_a_checkpoint_without_adapters_is_refused(tmp_path: Path) -> None:
    first, _ = trainer(tmp_path, 2)
    first.train()
    (tmp_path / "checkpoint-2" / STATE_FILE).unlink()
    second, backbone = trainer(tmp_path, 4)
    before = backbone.state()
    with pytest.raises(StateFileError, match=STATE_FILE):
        second.train(resume_from_checkpoint=True)
    assert all(torch.equal(a, b) for a, b in zip(before, backbone.state(), strict=True))


@pytest.mark.clause("ERR-4")
def test_without_the_callback_trainer_at_least_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, _ = trainer(tmp_path, 2, callback=False)
    first.train()
    second, _ = trainer(tmp_path, 3, callback=False)
    with caplog.at_level("WARNING", logger="transformers.trainer"):
        import transformers

        transformers.utils.logging.enable_propagation()
        second.train(resume_from_checkpoint=True)
    assert "crma.mix_logits" in caplog.text


@pytest.mark.clause("ERR-4")
def test_broken_adapters_do_not_replace_good_ones(tmp_path: Path) -> None:
    run, backbone = trainer(tmp_path, 2)
    run.train()
    file = tmp_path / "checkpoint-2" / STATE_FILE
    good = file.read_bytes()
    with torch.no_grad():
        next(backbone.parameters()).fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="mix_logits"):
        backbone.save(file)
    assert file.read_bytes() == good

"""transformers.Trainer trains, saves, pushes and loads the adapters, or refuses to."""

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("peft")
import transformers
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments

from backends.torch import CRMABackbone, attach_crma, load_state
from backends.torch.conftest import same_state, tiny_model
from backends.torch.save_pretrained import STATE_FILE
from backends.torch.trainer import CRMACallback
from reference.errors import ConfigError, ModelError, NonFiniteError, StateFileError

DATA = [{"input_ids": row, "labels": row} for row in torch.arange(3, 35).reshape(8, 4)]
COPIES = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["crma"])
ORDERS = ("bare", "crma then peft", "peft then crma")


def build(order: str) -> tuple[Any, CRMABackbone]:
    """A frozen base with CRMA, and LoRA as ``order`` says."""
    model = tiny_model("llama").requires_grad_(False)
    backbone = attach_crma(model) if order != "peft then crma" else None
    if order != "bare":
        torch.manual_seed(1)
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    backbone = backbone or attach_crma(model)
    backbone.requires_grad_(True)
    return model, backbone


def trainer_of(
    model: Any, folder: Path, steps: int, *callbacks: TrainerCallback, scores: list[float] | None = None, **changed: Any
) -> Any:
    """``scores``: what the evaluations are to say, in their order."""
    settings: dict[str, Any] = {
        "max_steps": steps, "save_steps": 2, "learning_rate": 0.1, "per_device_train_batch_size": 2, "report_to": [],
        "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no", "save_strategy": "steps",
        "lr_scheduler_type": "constant",
    }  # fmt: skip
    if scores:
        settings |= {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "fake"}
        settings |= {"greater_is_better": True}
    return Trainer(
        model=model,
        args=TrainingArguments(str(folder), **settings | changed),
        train_dataset=DATA,
        eval_dataset=DATA[:2],
        callbacks=list(callbacks),
        compute_metrics=(lambda _: {"fake": scores.pop(0)}) if scores else None,
    )


def trainer(folder: Path, steps: int, callback: bool = True, order: str = "bare", **changed: Any) -> tuple[Any, Any]:
    model, backbone = build(order)
    return trainer_of(model, folder, steps, *[CRMACallback(backbone)] * callback, **changed), backbone


def same(backbone: CRMABackbone, folder: Path) -> bool:
    """Whether the folder holds exactly these adapters."""
    return same_state(backbone, load_state(folder / STATE_FILE).state)


@pytest.mark.clause("STATE-1")
@pytest.mark.parametrize("order", ORDERS)
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, order: str) -> None:
    whole, expected = trainer(tmp_path / "whole", 4, order=order)
    start = expected.state()
    whole.train()
    first, _ = trainer(tmp_path / "parts", 2, order=order)
    first.train()
    second, resumed = trainer(tmp_path / "parts", 4, order=order, restore_callback_states_from_checkpoint=True)
    second.train(resume_from_checkpoint=True)
    assert same_state(resumed, expected)
    assert not any(map(torch.equal, start, resumed.state()))
    assert same(resumed, tmp_path / "parts" / "checkpoint-4")


@pytest.mark.clause("STATE-4")
@pytest.mark.parametrize("damage", ["missing", "another checkpoint's", "another run's", "no checksum"])
def test_a_checkpoint_without_its_adapters_is_refused(tmp_path: Path, damage: str) -> None:
    first, _ = trainer(tmp_path / "run", 4)
    first.train()
    file = tmp_path / "run" / "checkpoint-4" / STATE_FILE
    if damage == "missing":
        file.unlink()
    elif damage == "another checkpoint's":
        shutil.copy(tmp_path / "run" / "checkpoint-2" / STATE_FILE, file)
    elif damage == "another run's":
        file.write_bytes(file.read_bytes()[:-1] + b"\1")
    else:
        state = file.with_name("trainer_state.json")
        state.write_text(state.read_text().replace('"sha256": "', '"sha257": "'))
    second, backbone = trainer(tmp_path / "run", 6)
    before = backbone.state()
    with pytest.raises(StateFileError, match="other adapters" if damage.startswith("another") else STATE_FILE):
        second.train(resume_from_checkpoint=True)
    assert same_state(backbone, before)


@pytest.mark.clause("STATE-4")
def test_resuming_from_another_folder_takes_that_folders_adapters(tmp_path: Path) -> None:
    """Also where output_dir holds a checkpoint of the same step, of another run."""
    here, there = tmp_path / "here", tmp_path / "there"
    other, _ = trainer(here, 2, learning_rate=0.01)
    other.train()
    first, expected = trainer(there, 4)
    first.train()
    wanted = there / "checkpoint-2"
    run, _ = trainer(here, 4)
    with pytest.raises(StateFileError, match="resume_from"):
        run.train(resume_from_checkpoint=str(wanted))
    model, backbone = build("bare")
    run = trainer_of(model, here, 4, CRMACallback(backbone, resume_from=wanted))
    run.train(resume_from_checkpoint=str(wanted))
    assert same_state(backbone, expected)
    run, backbone = trainer(tmp_path / "new", 4, resume_from_checkpoint=str(wanted))
    run.train(resume_from_checkpoint=run.args.resume_from_checkpoint)
    assert same_state(backbone, expected)


@pytest.mark.clause("STATE-1")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("changed", [{}, {"save_only_model": True, "save_total_limit": 1}, {"save_strategy": "best"}])
def test_the_best_model_has_its_adapters(tmp_path: Path, order: str, changed: dict[str, Any]) -> None:
    run, backbone = trainer(tmp_path, 6, order=order, scores=[1.0, 2.0, 1.5], load_best_model_at_end=True, **changed)
    start = backbone.state()
    run.train()
    assert run.state.best_model_checkpoint.endswith("checkpoint-4")
    assert same(backbone, tmp_path / "checkpoint-4")
    assert not torch.equal(start.bases, backbone.state().bases)
    run.save_model(str(tmp_path / "final"))
    assert same(backbone, tmp_path / "final")


@pytest.mark.clause("STATE-4")
@pytest.mark.parametrize("damage", ["missing", "swapped"])
def test_the_best_model_without_its_adapters_is_refused(tmp_path: Path, damage: str) -> None:
    class Damage(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            file = tmp_path / "checkpoint-2" / STATE_FILE
            if state.global_step == 4:
                file.unlink()
                if damage == "swapped":
                    backbone.save(file)

    model, backbone = build("crma then peft")
    run = trainer_of(
        model, tmp_path, 4, CRMACallback(backbone), Damage(), scores=[2.0, 1.0], load_best_model_at_end=True
    )
    with pytest.raises(StateFileError, match=STATE_FILE):
        run.train()


@pytest.mark.clause("STATE-1")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("strategy", ["every_save", "all_checkpoints"])
def test_every_folder_for_the_hub_has_the_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str, strategy: str
) -> None:
    uploads: list[tuple[str, bytes]] = []

    class Hub:
        def create_repo(self, *_: Any, **__: Any) -> Any:
            return SimpleNamespace(repo_id="somebody/model")

        def upload_folder(self, *, folder_path: str, **_: Any) -> Any:
            uploads.append((str(folder_path), Path(folder_path, STATE_FILE).read_bytes()))
            return SimpleNamespace(done=lambda: True, result=lambda: None)

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    run, backbone = trainer(tmp_path, 4, order=order, push_to_hub=True, hub_strategy=strategy, hub_always_push=True)
    monkeypatch.setattr(run, "create_model_card", lambda **_: None)
    run.train()
    stored = [(tmp_path / f"checkpoint-{step}" / STATE_FILE).read_bytes() for step in (2, 4)]
    each = [data for data in stored for _ in range(1 if strategy == "every_save" else 2)]
    assert [data for _, data in uploads] == each
    with torch.no_grad():
        backbone.parameter_groups()["gate"][0].add_(1.0)
    run.push_to_hub()
    assert uploads[-1][0] == str(tmp_path)
    assert same(backbone, tmp_path)
    assert uploads[-1][1] not in stored


def only_lora(run: Any, *_: Any) -> None:
    run.optimizer = torch.optim.AdamW([value for name, value in run.model.named_parameters() if "lora_" in name])


def rounded(run: Any, backbone: CRMABackbone, *_: Any) -> None:
    for parameter in backbone.parameters():
        parameter.data = parameter.data.bfloat16()


@pytest.mark.clause("ERR-4")
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run, crma, _: crma.requires_grad_(False), r"'basis' frozen in 2 of 2 layers.*requires_grad_\(True\)"),
        (
            lambda run, crma, _: crma.parameter_groups()["gate"][1].requires_grad_(False),
            "'gate' frozen in 1 of 2 layers",
        ),
        (only_lora, "optimizer does not hold"),
        (lambda run, crma, _: setattr(run, "optimizer", torch.optim.AdamW(crma.parameters(), 0.0)), "rate of 0"),
        (lambda run, crma, _: setattr(crma.adapters[0], "enabled", False), "bypassed"),
        (lambda run, crma, callback: setattr(callback, "backbone", build("bare")[1]), "another model"),
        (lambda run, crma, _: crma.detach_from_model(), "no CRMA adapters attached"),
        (lambda run, *_: run.model.add_adapter("second", COPIES), "ModulesToSaveWrapper"),
        (rounded, "bfloat16"),
        (lambda run, crma, callback: setattr(callback, "trained", ()), "'basis' that requires gradients"),
    ],
)
def test_adapters_that_would_not_train_are_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    model, backbone = build("crma then peft")
    callback = CRMACallback(backbone)
    run = trainer_of(model, tmp_path, 2, callback)
    spoil(run, backbone, callback)
    with pytest.raises(ModelError, match=message):
        run.train()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.clause("ERR-4")
def test_adapters_that_no_gradient_reaches_are_refused(tmp_path: Path) -> None:
    run, _ = trainer(tmp_path, 2)
    run.model.lm_head.requires_grad_(True)  # so that the loss has a gradient at all
    run.model.model.norm.register_forward_pre_hook(lambda module, args: (args[0].detach(),))
    with pytest.raises(ModelError, match="without a gradient"):
        run.train()


def test_adapters_may_be_frozen_on_purpose(tmp_path: Path) -> None:
    model, backbone = build("crma then peft")
    start = backbone.requires_grad_(False).state()
    trainer_of(model, tmp_path, 2, CRMACallback(trained=())).train()
    assert same_state(backbone, start)
    assert same(backbone, tmp_path / "checkpoint-2")
    with pytest.raises(ConfigError, match="bases"):
        CRMACallback(trained=("bases",))


def test_a_copy_of_the_trained_model_saves_its_own_adapters(tmp_path: Path) -> None:
    run, backbone = trainer(tmp_path, 2, order="crma then peft")
    run.train()
    copied = copy.deepcopy(run.model)
    with torch.no_grad():
        backbone.parameter_groups()["gate"][0].fill_(3.0)
    copied.save_pretrained(tmp_path / "copy")
    run.model.save_pretrained(tmp_path / "own")
    assert same(backbone, tmp_path / "own")
    assert not same(backbone, tmp_path / "copy")
    merged = run.model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert same(backbone, tmp_path / "merged")
    with pytest.raises(ConfigError, match="push_to_hub"):
        merged.save_pretrained(tmp_path / "pushed", push_to_hub=True)
    backbone.detach_from_model()
    merged.save_pretrained(tmp_path / "bare")
    assert not (tmp_path / "bare" / STATE_FILE).exists()


@pytest.mark.clause("ERR-4")
def test_without_the_callback_trainer_at_least_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, _ = trainer(tmp_path, 2, callback=False)
    first.train()
    second, _ = trainer(tmp_path, 3, callback=False)
    with caplog.at_level("WARNING", logger="transformers.trainer"):
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
    with pytest.raises(NonFiniteError, match="mix_logits"):
        run.save_model(str(file.parent))
    assert file.read_bytes() == good

"""Whole runs on a tiny model: what the conditions promise, and that no interruption changes a bit."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from backends.atomic import atomic_write
from backends.finetune.conftest import adapters, measured, run_with_kills
from backends.finetune.runs.results import read_results

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from safetensors.torch import load_file

from backends.torch import load_state
from backends.torch.certificates import displacement


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_command):
    """One whole run, which the tests compare others with."""
    from backends.finetune.cli import main

    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(tiny_command(folder)) == 0
    return folder


@pytest.mark.clause("CL-5")
def test_naive_forgets_and_frozen_drifts_by_exactly_zero(finished):
    results = read_results(finished)
    naive, frozen, modular = (results.metrics(condition, 0) for condition in ("naive", "frozen", "modular"))
    assert naive is not None
    assert frozen is not None
    assert modular is not None
    assert naive.drift > 0.05
    assert frozen.drift == 0.0
    assert (frozen.drift_per_task == 0.0).all()
    assert modular.drift != 0.0  # the shared CRMA has moved, and the earlier tasks feel it
    assert modular.final_holdout < naive.final_holdout


@pytest.mark.clause("CL-5")
def test_first_phase_of_naive_and_frozen_is_the_same_training(finished):
    first = {line["condition"]: line for line in measured(finished) if line["phase"] == 0}
    assert first["naive"]["losses"] == first["frozen"]["losses"]
    assert first["naive"]["holdout"] == first["frozen"]["holdout"]
    assert first["modular"]["losses"] != first["frozen"]["losses"]


def test_training_lowers_the_loss_and_every_group_is_trained(finished):
    for line in measured(finished):
        assert np.mean(line["losses"][-2:]) < np.mean(line["losses"][:2])
        expected = {"lora", "basis", "mixing", "gate"} if line["condition"] == "modular" else {"lora"}
        assert set(line["gradient_norms"]) == expected
        assert all(min(norms) > 0 for norms in line["gradient_norms"].values())


@pytest.mark.clause("BUDGET-1")
def test_the_shared_crma_stays_within_its_budget_of_the_first_task(finished):
    states = [load_state(finished / "0-modular" / f"crma-{phase}.safetensors").state for phase in range(3)]
    moved = [displacement(states[0], state, 20) for state in states[1:]]
    assert all((each <= 0.05 + 1e-6).all() for each in moved)
    assert all((each > 0.005).any() for each in moved)
    logged = [line["spectral"] for line in measured(finished) if line["condition"] == "modular"]
    assert logged[0]["displacement_max"][-1] is None
    assert abs(logged[2]["displacement_max"][-1] - float(moved[1].max())) < 1e-9
    assert abs(logged[2]["displacement_min"][-1] - float(moved[1].min())) < 1e-9
    assert max(max(log["norm_max"]) for log in logged) <= 1 + 5e-7
    assert min(min(log["norm_min"]) for log in logged) >= 1 - 5e-7
    assert max(max(log["adapter_max"]) for log in logged) <= 1 + 5e-7


def test_the_same_command_again_gives_the_same_bits(finished, tmp_path, crma, finetune_command):
    code, *_ = crma(finetune_command(tmp_path / "again"))
    assert code == 0
    assert adapters(tmp_path / "again") == adapters(finished)
    assert measured(tmp_path / "again") == measured(finished)


def test_another_seed_gives_other_bits_and_may_join_the_folder(finished, tmp_path, crma, finetune_command):
    shutil.copytree(finished, tmp_path / "run")
    code, _, _ = crma(finetune_command(tmp_path / "run", "--seeds", "0", "7", "--conditions", "frozen"))
    assert code == 0
    results = read_results(tmp_path / "run")
    assert results.complete_seeds("frozen") == [0, 7]
    assert not np.array_equal(results.holdout_matrix("frozen", 0), results.holdout_matrix("frozen", 7), equal_nan=True)
    assert {k: v for k, v in adapters(tmp_path / "run").items() if k.startswith("0-")} == adapters(finished)


@pytest.mark.parametrize("attempt", [0, *(pytest.param(more, marks=pytest.mark.slow) for more in range(1, 8))])
def test_killed_anywhere_and_resumed_gives_the_same_bits(finished, tmp_path, crma_process, finetune_command, attempt):
    """Kills inside a write, a rename, a step or an evaluation; several times in one run."""
    arguments = finetune_command(tmp_path / "run")
    killed = run_with_kills(crma_process, arguments, "torch.engine.TorchEngine", 4)
    assert adapters(tmp_path / "run") == adapters(finished), killed
    assert measured(tmp_path / "run") == measured(finished), killed


@pytest.mark.parametrize("call", [6, 17, *(pytest.param(more, marks=pytest.mark.slow) for more in (1, 11, 30))])
def test_a_full_disk_at_any_write_is_named_and_nothing_is_lost(
    finished, tmp_path, crma, finetune_command, monkeypatch, call
):
    """``call``: the first fsync that fails; checkpoints, adapters, states and results all end in one."""
    calls, fsync = [], os.fsync

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", full)
    code, _, error = crma(finetune_command(tmp_path / "run"))
    assert code == 2
    assert "Traceback" not in error
    assert "free some space" in error
    assert not list((tmp_path / "run").rglob("*.tmp"))
    monkeypatch.undo()
    assert crma(finetune_command(tmp_path / "run"))[0] == 0
    assert adapters(tmp_path / "run") == adapters(finished)
    assert measured(tmp_path / "run") == measured(finished)


def test_killed_after_the_last_record_leaves_no_checkpoint(finished, tmp_path, crma, finetune_command, monkeypatch):
    """The checkpoint of the last phase is removed last; whoever resumes removes it."""
    unlink, calls = Path.unlink, []

    def interrupted(self, missing_ok=False):
        if self.name == "checkpoint.safetensors":
            calls.append(self)
            if len(calls) == 3:
                raise KeyboardInterrupt
        return unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", interrupted)
    assert crma(finetune_command(tmp_path / "run"))[0] == 130
    monkeypatch.undo()
    assert list((tmp_path / "run").rglob("checkpoint.safetensors"))
    assert crma(finetune_command(tmp_path / "run"))[0] == 0
    assert adapters(tmp_path / "run") == adapters(finished)


@pytest.mark.parametrize("call", [1, 2])
def test_killed_while_a_folder_without_work_is_claimed_again_leaves_it_ours(
    finished, tmp_path, crma, finetune_command, monkeypatch, call
):
    from backends.finetune.engines.torch import engine as torch_engine

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch_engine.TorchEngine, "step", interrupted)
    assert crma(finetune_command(tmp_path / "run"))[0] == 130  # claimed, and nothing trained
    monkeypatch.undo()
    calls = []

    def interrupted_later(path, data):
        calls.append(path)
        if len(calls) == call:
            raise KeyboardInterrupt
        atomic_write(path, data)

    monkeypatch.setattr("backends.finetune.runs.run_folder.atomic_write", interrupted_later)
    assert crma(finetune_command(tmp_path / "run"))[0] == 130
    monkeypatch.undo()
    assert crma(finetune_command(tmp_path / "run"))[0] == 0
    assert adapters(tmp_path / "run") == adapters(finished)


def test_interrupt_from_the_keyboard_says_how_to_go_on(finished, tmp_path, crma, finetune_command, monkeypatch):
    from backends.finetune.engines.torch import engine as torch_engine

    step, calls = torch_engine.TorchEngine.step, []

    def interrupted(self, batch, index, memory=None):
        calls.append(index)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return step(self, batch, index, memory)

    monkeypatch.setattr(torch_engine.TorchEngine, "step", interrupted)
    code, _, error = crma(finetune_command(tmp_path / "run"))
    assert code == 130
    assert "same --out" in error
    assert "Traceback" not in error
    monkeypatch.undo()
    assert crma(finetune_command(tmp_path / "run"))[0] == 0
    assert adapters(tmp_path / "run") == adapters(finished)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_folder(
    finished, tmp_path, crma, finetune_command, monkeypatch
):
    from backends.finetune.engines.torch import engine as torch_engine

    loss = torch_engine.TorchEngine._loss

    def diverging(self, batch):
        total, tokens = loss(self, batch)
        return (total * float("nan") if self.phase == 1 and torch.is_grad_enabled() else total), tokens

    monkeypatch.setattr(torch_engine.TorchEngine, "_loss", diverging)
    code, _, error = crma(finetune_command(tmp_path / "run"))
    assert code == 2
    assert "phase 1, step 1: got loss nan" in error
    assert "learning rate" in error
    monkeypatch.undo()
    assert crma(finetune_command(tmp_path / "run"))[0] == 0
    assert adapters(tmp_path / "run") == adapters(finished)


def test_the_lora_of_a_task_loads_in_plain_peft(finished, tiny_model):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = finished / "0-frozen" / "task-1"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), folder)
    stored = load_file(folder / "adapter_model.safetensors")
    loaded = {name.replace(".default", ""): value for name, value in model.named_parameters() if "lora_" in name}
    assert set(loaded) == set(stored)
    assert all(torch.equal(loaded[name], stored[name]) for name in stored)
    assert any(float(value.abs().max()) > 0 for name, value in stored.items() if "lora_B" in name)


def test_the_folder_of_a_task_says_what_it_is_for(finished, tiny_model):
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM

    folder, ids = finished / "0-frozen" / "task-0", torch.arange(5, 25)[None]
    found = AutoPeftModelForCausalLM.from_pretrained(folder)
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), folder)
    with torch.no_grad():
        assert torch.equal(found(input_ids=ids).logits, expected(input_ids=ids).logits)
        with expected.disable_adapter():
            assert not torch.equal(found(input_ids=ids).logits, expected(input_ids=ids).logits)

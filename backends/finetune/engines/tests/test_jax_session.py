"""Whole runs in JAX on a tiny model: the same promises as in PyTorch, and a mesh changes nothing but rounding."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
jax = pytest.importorskip("jax", reason="pip install 'crma[jax]'")
pytest.importorskip("optax")

from backends.finetune.conftest import adapters, measured, results_lines, rewrite_results, run_with_kills
from backends.finetune.runs.results import read_results
from backends.jax.certificates import displacement
from backends.jax.state import load_state

JAX = ("--backend", "jax-cpu")


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """What one process compiles, the next one finds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRMA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_command, compiled):
    """One whole run, which the tests compare others with."""
    from backends.finetune.cli import main

    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(tiny_command(folder, *JAX)) == 0
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
    assert modular.drift != 0.0
    assert modular.final_holdout < naive.final_holdout
    for line in measured(finished):
        assert np.mean(line["losses"][-2:]) < np.mean(line["losses"][:2])
        expected = {"lora", "basis", "mixing", "gate"} if line["condition"] == "modular" else {"lora"}
        assert set(line["gradient_norms"]) == expected
        assert all(min(norms) > 0 for norms in line["gradient_norms"].values())


@pytest.mark.clause("BUDGET-1")
def test_the_shared_crma_stays_within_its_budget_of_the_first_task(finished):
    states = [load_state(finished / "0-modular" / f"crma-{phase}.safetensors").stack for phase in range(3)]
    moved = [displacement(states[0], state) for state in states[1:]]
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
    code, *_ = crma(finetune_command(tmp_path / "again", *JAX))
    assert code == 0
    assert adapters(tmp_path / "again") == adapters(finished)
    assert measured(tmp_path / "again") == measured(finished)


@pytest.mark.parametrize("kills", [1, *(pytest.param(more, marks=pytest.mark.slow) for more in (2, 3, 4))])
def test_killed_anywhere_and_resumed_gives_the_same_bits(finished, tmp_path, crma_process, finetune_command, kills):
    """Kills inside a write, a rename, a step or an evaluation."""
    arguments = finetune_command(tmp_path / "run", *JAX)
    killed = run_with_kills(crma_process, arguments, "jax.engine.JaxEngine", kills)
    assert adapters(tmp_path / "run") == adapters(finished), killed
    assert measured(tmp_path / "run") == measured(finished), killed


CONTROLS = ("modular@0.02", "modular-pinned", "modular-still", "frozen-raised")


@pytest.fixture(scope="module")
def controls(tmp_path_factory, tiny_command, compiled):
    """A run of the controls, with a panel, and each task measured before it is trained on."""
    from backends.finetune.cli import main

    folder = tmp_path_factory.mktemp("controls") / "run"
    settings = ("--set", "transfer=true", "--set", "panel=1", "--conditions", *CONTROLS)
    assert main(tiny_command(folder, *JAX, *settings)) == 0
    return folder


def states(run, condition):
    return [load_state(run / f"0-{condition}" / f"crma-{phase}.safetensors").stack for phase in range(3)]


@pytest.mark.clause("CL-5")
def test_a_pinned_or_still_crma_drifts_by_exactly_zero(controls):
    results = read_results(controls)
    for condition in CONTROLS[1:]:
        metrics = results.metrics(condition, 0)
        assert metrics is not None
        assert (metrics.drift_per_task == 0.0).all(), condition
    first, second, third = states(controls, "modular-pinned")
    assert min(displacement(first, second).max(), displacement(second, third).max()) > 0.001  # it did go on training
    still = {(controls / "0-modular-still" / f"crma-{phase}.safetensors").read_bytes() for phase in range(3)}
    assert len(still) == 1
    groups = [set(line["gradient_norms"]) for line in measured(controls) if line["condition"] == "modular-still"]
    assert groups == [{"lora", "basis", "mixing", "gate"}, {"lora"}, {"lora"}]


@pytest.mark.clause("BUDGET-1")
def test_a_budget_in_the_name_of_a_condition_holds(controls):
    first, *later = states(controls, "modular@0.02")
    for state in later:
        assert 0.005 < displacement(first, state).max() <= 0.02 + 1e-6


def test_a_raised_rank_has_as_many_parameters_as_modular(finished, controls):
    sizes = {line["condition"]: line["parameters"] for line in measured(finished) + measured(controls)}
    raised, modular = sizes["frozen-raised"]["lora"], sum(sizes["modular"].values())
    per_rank = sizes["frozen"]["lora"] // 2
    assert modular <= raised < modular + per_rank


def test_tasks_are_measured_before_they_are_trained_on_and_asked_by_a_panel(controls):
    results = read_results(controls)
    (base,) = results.base.values()
    for line in measured(controls):
        assert line["before"] > 0
        if line["condition"] == "frozen-raised":  # a fresh LoRA adds nothing
            assert line["before"] == pytest.approx(base.holdout[line["task"]], rel=1e-6)
        elif line["phase"] > 0:
            assert line["before"] != pytest.approx(base.holdout[line["task"]], rel=1e-4)
    assert set(results.panels) == {(condition, 0) for condition in CONTROLS[:3]}
    assert all(len(panel.with_crma) == len(panel.without_crma) == 3 for panel in results.panels.values())


def test_a_still_crma_interrupted_in_its_last_phase_goes_on_to_the_same_bits(
    controls, tmp_path, crma, finetune_command, monkeypatch
):
    from backends.finetune.engines.jax import engine as jax_engine

    step, calls = jax_engine.JaxEngine.step, []

    def interrupted(self, batches, index, memory=None):
        calls.append(index)
        if len(calls) == 12 + 12 + 8:
            raise KeyboardInterrupt
        return step(self, batches, index, memory)

    monkeypatch.setattr(jax_engine.JaxEngine, "step", interrupted)
    settings = (*JAX, "--set", "transfer=true", "--set", "panel=1", "--conditions", "modular-still")
    assert crma(finetune_command(tmp_path / "run", *settings))[0] == 130
    monkeypatch.undo()
    assert crma(finetune_command(tmp_path / "run", *settings))[0] == 0
    whole = adapters(controls)
    assert adapters(tmp_path / "run") == {name: whole[name] for name in whole if name.startswith("0-modular-still")}


def test_a_panel_is_answered_in_a_later_command_as_in_the_same(controls, tmp_path, crma, finetune_command):
    shutil.copytree(controls, tmp_path / "run")
    kept = [line for line in results_lines(tmp_path / "run") if line["kind"] != "panel"]
    rewrite_results(tmp_path / "run", kept)
    settings = (*JAX, "--set", "transfer=true", "--set", "panel=1", "--conditions", *CONTROLS)
    assert crma(finetune_command(tmp_path / "run", *settings))[0] == 0
    assert read_results(tmp_path / "run").panels == read_results(controls).panels


@pytest.mark.parametrize(
    ("more", "message"),
    [
        *(
            (("--conditions", "naive", condition), f"conditions: got {condition}, with a JAX backend")
            for condition in ("replay", "ewc", "lwf", "o-lora", "full", "modular-unconstrained")
        ),
        (("--set", "packing=true"), "packing: got True, with a JAX backend"),
        (("--set", "accumulation=2"), "accumulation: got 2, with a JAX backend"),
        (("--set", "quantization=4bit"), "quantization: got '4bit', with a JAX backend"),
    ],
)
def test_what_jax_cannot_do_is_refused_before_anything_starts(tmp_path, crma, finetune_command, more, message):
    code, _, error = crma(finetune_command(tmp_path / "run", *JAX, *more))
    assert code == 2
    assert message in error
    assert "--backend torch-cpu" in error
    assert not (tmp_path / "run").exists()


def assert_same_but_for_rounding(run, finished, of_the_mesh):
    """MODULAR on a mesh and on one device; the phase ``of_the_mesh`` adds up otherwise, or it did not run there."""
    found, whole = ([line for line in measured(each) if line["condition"] == "modular"] for each in (run, finished))
    for mine, theirs in zip(found, whole, strict=True):
        np.testing.assert_allclose(mine["losses"], theirs["losses"], rtol=1e-4)
        assert mine["holdout"] == pytest.approx(theirs["holdout"], rel=1e-4)
    assert found[of_the_mesh]["losses"] != whole[of_the_mesh]["losses"]


@pytest.mark.slow
def test_rows_dealt_to_two_devices_train_the_same(finished, tmp_path, crma_process, finetune_command, monkeypatch):
    """Batches of 3 rows, which do not divide by 2."""
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2")
    process = crma_process(finetune_command(tmp_path / "run", *JAX, "--conditions", "modular", "--mesh", "2x1"))
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert_same_but_for_rounding(tmp_path / "run", finished, of_the_mesh=0)


def test_a_run_may_be_interrupted_on_one_device_and_resumed_on_a_mesh(
    finished, tmp_path, crma, crma_process, finetune_command, monkeypatch
):
    """Checkpoints do not know the mesh. One phase and half of the next are of one device, the rest is of four."""
    from backends.finetune.engines.jax import engine as jax_engine

    step, calls = jax_engine.JaxEngine.step, []

    def interrupted(self, batch, index, memory=None):
        calls.append(index)
        if len(calls) == 12 + 8:
            raise KeyboardInterrupt
        return step(self, batch, index, memory)

    monkeypatch.setattr(jax_engine.JaxEngine, "step", interrupted)
    modular = (*JAX, "--conditions", "modular")
    assert crma(finetune_command(tmp_path / "run", *modular))[0] == 130
    monkeypatch.undo()
    assert list((tmp_path / "run").rglob("checkpoint.safetensors"))
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4")
    process = crma_process(finetune_command(tmp_path / "run", *modular, "--mesh", "2x2"))
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert_same_but_for_rounding(tmp_path / "run", finished, of_the_mesh=2)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_folder(
    finished, tmp_path, crma, finetune_command, monkeypatch
):
    from backends.finetune.engines.jax import engine as jax_engine

    train_step: Any = vars(jax_engine)["train_step"]

    def diverging(*given):
        result = train_step(*given)
        return result._replace(loss=result.loss * float("nan"))

    monkeypatch.setattr(jax_engine, "train_step", diverging)
    code, _, error = crma(finetune_command(tmp_path / "run", *JAX))
    assert code == 2
    assert "phase 0, step 1: got loss nan" in error
    assert "learning rate" in error
    monkeypatch.undo()
    assert crma(finetune_command(tmp_path / "run", *JAX))[0] == 0
    assert adapters(tmp_path / "run") == adapters(finished)


@pytest.mark.parametrize("damage", ["cut", "another"])
def test_a_damaged_file_of_a_run_is_named(finished, tmp_path, crma, finetune_command, damage):
    shutil.copytree(finished, tmp_path / "run")
    results = tmp_path / "run" / "results.jsonl"
    lines = results.read_text().splitlines()
    results.write_text("\n".join(lines[:-1]) + "\n")  # the last phase of MODULAR is to run again
    target = tmp_path / "run" / "0-modular" / "task-1" / "adapter_model.safetensors"
    if damage == "cut":
        target.write_bytes(target.read_bytes()[:-7])
    else:
        settings = target.with_name("adapter_config.json")
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"peft_type": "IA3"}))
    code, _, error = crma(finetune_command(tmp_path / "run", *JAX))
    assert code == 2
    assert "task-1" in error
    assert "Traceback" not in error
    assert len(results.read_text().splitlines()) == len(lines) - 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--backend", "jax-cpu", "--mesh", "2"), "DATAxMODEL"),
        (("--backend", "jax-cpu", "--mesh", "64x2"), "128 devices"),
        (("--backend", "torch-cpu", "--mesh", "2x1"), "--mesh"),
        (("--backend", "jax-cuda"), "no such device"),
        (("--backend", "jax-pallas"), "for fine-tuning"),
    ],
)
def test_a_device_that_is_not_there_is_one_clear_error(tmp_path, crma, finetune_command, more, message):
    code, _, error = crma(finetune_command(tmp_path / "run", *more))
    assert code == 2
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_named(tmp_path, crma, finetune_command, monkeypatch):
    for module in ("backends.finetune.engines.jax.engine", "backends.finetune.engines.jax.step"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "optax", None)
    code, _, error = crma(finetune_command(tmp_path / "run", *JAX))
    assert code == 2
    assert "no package named optax" in error
    assert "crma[finetune,jax]" in error

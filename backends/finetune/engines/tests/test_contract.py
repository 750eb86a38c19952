"""The contract of engines.engine.Engine, by whole runs: what PyTorch, JAX and PyTorch under torchrun all promise.

A new engine is one more entry of ``SUBJECTS``.
"""

import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from backends.finetune.conftest import Arguments, adapters, measured, results_lines, rewrite_results
from backends.finetune.engines.tests.faults import spoil, torchrun_with, with_fault
from backends.finetune.engines.tests.processes import REPOSITORY, TIME_LIMIT, Ended, torchrun
from backends.finetune.runs.moments_file import read_moments
from backends.finetune.runs.results import read_results
from backends.finetune.runs.run_folder import RunFolder
from backends.state_file import decode_state
from reference import AdapterParameters, StreamMoment, data_displacement, displacement

CONDITIONS = (
    *("naive", "frozen", "modular", "modular@0.02", "modular-pinned", "modular-still", "frozen-raised"),
    *("modular@data-0.003", "modular@still-0.02"),
)
SETTINGS = ("--set", "transfer=true", "--set", "panel=1")
STEPS = 12  # of a phase
EPOCHS = 4
SUBJECTS = {"torch": ("torch-cpu", False), "jax": ("jax-cpu", False), "torchrun": ("torch-cpu", True)}


@dataclass(frozen=True)
class Subject:
    """An engine, and a whole run of it that the tests look at."""

    name: str
    arguments: Callable[..., list[str]]
    finished: Path

    @property
    def engine(self) -> str:
        return "jax" if self.name == "jax" else "torch"

    @property
    def is_distributed(self) -> bool:
        return SUBJECTS[self.name][1]


Run = Callable[..., Ended]


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_command: Arguments, compiled: Path
) -> Iterator[Subject]:
    backend, distributed = SUBJECTS[request.param]
    if request.param == "jax":
        pytest.importorskip("jax", reason="pip install 'crma[jax]'")
        pytest.importorskip("optax")
    folder = tmp_path_factory.mktemp("finished") / "run"

    def arguments(out: Path, *more: str, conditions: tuple[str, ...] = CONDITIONS) -> list[str]:
        return tiny_command(out, "--backend", backend, *SETTINGS, *more, "--conditions", *conditions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRMA_CACHE", str(compiled))
        if distributed:
            ended = torchrun(arguments(folder))
            assert ended.code == 0, ended.error
        else:
            from backends.finetune.cli import main

            assert main(arguments(folder)) == 0
        yield Subject(request.param, arguments, folder)


@pytest.fixture
def run(subject: Subject, crma: Callable[..., tuple[int, str, str]], tmp_path: Path) -> Run:
    """Run the command into tmp_path/run with an engine that has a fault, or with none."""

    def run(*conditions: str, fault: str = "") -> Ended:
        arguments = subject.arguments(tmp_path / "run", conditions=conditions)
        if subject.is_distributed:
            return torchrun_with(fault, arguments) if fault else torchrun(arguments)
        with pytest.MonkeyPatch.context() as patch:
            if fault:
                spoil(subject.engine, fault, patch.setattr)
            return Ended(*crma(arguments))

    return run


def phases(run: Path, condition: str) -> list[dict]:
    return [line for line in measured(run) if line["condition"] == condition]


def states_of(run: Path, condition: str, phase: int) -> list[AdapterParameters]:
    file = RunFolder(run).crma(0, condition, phase)
    state = decode_state(file.read_bytes(), str(file))
    layers = zip(state.mix_logits, state.gate_logits, state.bases, strict=True)
    return [AdapterParameters(mixing, gate, basis) for mixing, gate, basis in layers]


def moved(run: Path, condition: str) -> list[np.ndarray]:
    """The displacement of each layer from its state after the first task, after the second and the third."""
    first, *later = (states_of(run, condition, phase) for phase in range(3))
    return [np.array([displacement(*pair) for pair in zip(first, state, strict=True)]) for state in later]


def assert_same_bits(mine: Path, theirs: Path, *conditions: str, note: str = "") -> None:
    whole = {name: content for name, content in adapters(theirs).items() if name.partition("/")[0][2:] in conditions}
    assert adapters(mine) == whole, note
    for condition in conditions:
        assert phases(mine, condition) == phases(theirs, condition), note


@pytest.mark.clause("CL-5")
def test_naive_forgets_and_what_never_drifts_drifts_by_exactly_zero(subject):
    results = read_results(subject.finished)
    found: dict[str, Any] = {condition: results.metrics(condition, 0) for condition in CONDITIONS}
    assert found["naive"].drift > 0.05
    assert found["modular"].drift != 0.0  # the shared CRMA has moved, and the earlier tasks feel it
    assert found["modular"].final_holdout < found["naive"].final_holdout
    for condition in ("frozen", "frozen-raised", "modular-pinned", "modular-still"):
        assert (found[condition].drift_per_task == 0.0).all(), condition


@pytest.mark.clause("CL-5")
def test_the_first_phase_of_naive_and_frozen_is_the_same_training(subject):
    naive, frozen, modular = (phases(subject.finished, name)[0] for name in ("naive", "frozen", "modular"))
    assert (naive["losses"], naive["holdout"]) == (frozen["losses"], frozen["holdout"])
    assert modular["losses"] != frozen["losses"]


def test_training_lowers_the_loss_and_every_group_is_trained(subject):
    for line in measured(subject.finished):
        assert np.mean(line["losses"][-2:]) < np.mean(line["losses"][:2])
        trains_crma = line["condition"].startswith("modular") and (
            line["condition"] != "modular-still" or line["phase"] == 0
        )
        still_basis = line["phase"] > 0 and ("@still" in line["condition"] or "@data" in line["condition"])
        of_crma = {"basis", "mixing", "gate"} - ({"basis"} if still_basis else set())
        assert set(line["gradient_norms"]) == {"lora"} | (of_crma if trains_crma else set())
        assert all(min(norms) > 0 for norms in line["gradient_norms"].values())


@pytest.mark.clause("BUDGET-1")
@pytest.mark.parametrize(("condition", "budget"), [("modular", 0.05), ("modular@0.02", 0.02)])
def test_the_shared_crma_stays_within_its_budget_of_the_first_task(subject, condition, budget):
    found = moved(subject.finished, condition)
    assert all((each <= budget + 1e-6).all() and (each > 0.005).any() for each in found)
    logged = [line["spectral"] for line in phases(subject.finished, condition)]
    assert logged[0]["displacement_max"][-1] is None
    assert logged[2]["displacement_max"][-1] == pytest.approx(found[1].max(), abs=1e-6)
    assert logged[2]["displacement_min"][-1] == pytest.approx(found[1].min(), abs=1e-6)
    for log in logged:
        assert max(log["norm_max"]) <= 1 + 5e-7
        assert min(log["norm_min"]) >= 1 - 5e-7
        assert max(log["adapter_max"]) <= 1 + 5e-7


@pytest.mark.clause("DATA-1", "DATA-2", "DATA-3")
def test_what_earlier_tasks_saw_stays_within_the_data_budget(subject):
    """The worst case goes beyond it, so that the budget is another one; and tokens are those of the training texts."""
    name = "modular@data-0.003"
    folder, records, count = RunFolder(subject.finished), phases(subject.finished, name), 0
    states = [states_of(subject.finished, name, phase) for phase in range(3)]
    for phase in range(3):
        totals, found = read_moments(folder.files(0, name, phase).moments)
        count += records[phase]["tokens"] // EPOCHS - records[phase]["texts"]["train"]["texts"]
        assert found == count
        if phase == 2:
            continue
        values = []
        for layer, pair in enumerate(zip(states[0], states[phase + 1], strict=True)):
            assert pair[0].basis.tobytes() == pair[1].basis.tobytes()
            moment = StreamMoment(totals[layer], found)
            seen = data_displacement(*pair, moment)
            assert 0.001 < seen <= 0.003 + 1e-6
            assert seen < displacement(*pair)
            values.append(seen)
            flat = pair[0].basis.reshape(-1, pair[0].basis.shape[-1])
            assert 0 < np.trace(totals[layer]) <= found * np.linalg.norm(flat, 2) ** 2 * (1 + 1e-6)
        logged = records[phase + 1]["spectral"]["data_displacement_max"]
        assert logged[-1] == pytest.approx(max(values), abs=1e-6)
        assert max(logged) <= 0.003 + 1e-6
    assert set(records[0]["spectral"]["data_displacement_max"]) == {None}
    of_another = phases(subject.finished, "modular")[2]["spectral"]
    assert set(of_another["data_displacement_max"]) == {None}
    assert max(each.max() for each in moved(subject.finished, name)) > 0.003
    # The moment of the first task is taken of the state as it is after its phase, which one more condition has, too.
    assert folder.crma(0, name, 0).read_bytes() == folder.crma(0, "modular@still-0.02", 0).read_bytes()


@pytest.mark.clause("BUDGET-1")
def test_a_basis_that_stays_keeps_its_bits_while_the_rest_trains(subject):
    first, *later = (states_of(subject.finished, "modular@still-0.02", phase) for phase in range(3))
    for state in later:
        for one, other in zip(first, state, strict=True):
            assert one.basis.tobytes() == other.basis.tobytes()
            assert not np.array_equal(one.mix_logits, other.mix_logits)
            assert 0.001 < displacement(one, other) <= 0.02 + 1e-6


def test_a_pinned_crma_goes_on_training_and_a_still_one_does_not(subject):
    assert min(each.max() for each in moved(subject.finished, "modular-pinned")) > 0.001
    still = [RunFolder(subject.finished).crma(0, "modular-still", phase).read_bytes() for phase in range(3)]
    assert still[0] == still[1] == still[2]
    modular, pinned = (phases(subject.finished, name) for name in ("modular", "modular-pinned"))
    assert [line["losses"] for line in pinned] == [line["losses"] for line in modular]
    assert pinned[2]["holdout"] != modular[2]["holdout"]


def test_a_raised_rank_has_as_many_parameters_as_modular(subject):
    sizes = {line["condition"]: line["parameters"] for line in measured(subject.finished)}
    modular, raised = sum(sizes["modular"].values()), sizes["frozen-raised"]["lora"]
    assert modular <= raised < modular + sizes["frozen"]["lora"] // 2


def test_tasks_are_measured_before_they_are_trained_on_and_asked_by_a_panel(subject):
    results = read_results(subject.finished)
    (base,) = results.base.values()
    for line in measured(subject.finished):
        bare = pytest.approx(base.holdout[line["task"]], rel=1e-6)
        if line["condition"].startswith("frozen"):  # a fresh LoRA adds nothing
            assert line["before"] == bare
        elif line["phase"] > 0:
            assert line["before"] != bare
    assert set(results.panels) == {(name, 0) for name in CONDITIONS if name.startswith("modular")}
    panels = list(results.panels.values())
    assert all(len(panel.with_crma) == len(panel.without_crma) == len(panel.without_lora) == 3 for panel in panels)
    assert all(len(panel.without_both) == 3 and panel.without_both == panels[0].without_both for panel in panels)


def test_the_same_command_again_gives_the_same_bits(subject, run, tmp_path):
    ended = run("frozen", "modular")
    assert ended.code == 0, ended.error
    assert_same_bits(tmp_path / "run", subject.finished, "frozen", "modular")


@pytest.mark.parametrize("attempt", [0, *(pytest.param(more, marks=pytest.mark.slow) for more in range(1, 8))])
@pytest.mark.parametrize("condition", ["modular", "modular@data-0.003"])
def test_killed_anywhere_and_resumed_gives_the_same_bits(subject, run, tmp_path, attempt, condition):
    """Kills inside a write, a rename, a step or an evaluation; several times in one run."""
    if subject.is_distributed:
        pytest.skip("test_torchrun kills one process and all")
    arguments = subject.arguments(tmp_path / "run", conditions=(condition,))
    counts = []
    for _ in range(4 if attempt else 1):
        counts.append(random.Random().randrange(1, 90))  # a fresh draw each time
        command = [sys.executable, *with_fault(subject.engine, f"killed-anywhere {counts[-1]}"), *arguments]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    ended = run(condition)
    assert ended.code == 0, (ended.error, counts)
    assert_same_bits(tmp_path / "run", subject.finished, condition, note=f"killed at {counts}")


@pytest.mark.parametrize(
    ("condition", "call"),
    [("modular", STEPS + 8), ("modular-still", 2 * STEPS + 8), ("modular@data-0.003", 2 * STEPS + 4)],
)
def test_interrupted_in_a_step_and_resumed_gives_the_same_bits(subject, run, tmp_path, condition, call):
    ended = run(condition, fault=f"interrupted {call}")
    assert ended.code == (1 if subject.is_distributed else 130)  # torchrun's own status
    assert "same --out" in ended.error
    assert list((tmp_path / "run").rglob("checkpoint.safetensors"))
    ended = run(condition)
    assert ended.code == 0, ended.error
    assert_same_bits(tmp_path / "run", subject.finished, condition)


def test_a_loss_that_is_not_finite_stops_the_run_before_it_changes_anything(subject, run, tmp_path):
    ended = run("modular", fault=f"not-finite {STEPS + 1}")
    assert ended.code != 0
    assert "phase 1, step 1: got loss nan" in ended.error
    assert "learning rate" in ended.error
    assert "backends/finetune/cli/program.py" not in ended.error  # no traceback of ours; torchrun adds its own
    ended = run("modular")
    assert ended.code == 0, ended.error
    assert_same_bits(tmp_path / "run", subject.finished, "modular")


@pytest.mark.parametrize("kind", ["panel", "phase"])
def test_what_a_run_lacks_is_done_again_from_the_files_of_its_tasks(subject, run, tmp_path, kind):
    shutil.copytree(subject.finished, tmp_path / "run")
    lines = results_lines(tmp_path / "run")
    last = max(i for i, line in enumerate(lines) if line["kind"] == kind and line["condition"] == "modular")
    rewrite_results(tmp_path / "run", lines[:last] + lines[last + 1 :])
    if kind == "panel":  # killed between the last phase's record and the end of its checkpoint
        RunFolder(tmp_path / "run").checkpoint(0, "modular").write_bytes(b"left behind")
    ended = run("modular")
    assert ended.code == 0, ended.error
    assert_same_bits(tmp_path / "run", subject.finished, *CONDITIONS)
    assert read_results(tmp_path / "run").panels == read_results(subject.finished).panels


@pytest.mark.parametrize("damaged", ["task-1/adapter_model.safetensors", "crma-0.safetensors", "crma-1.safetensors"])
def test_a_damaged_file_of_an_earlier_task_is_named(subject, run, tmp_path, damaged):
    shutil.copytree(subject.finished, tmp_path / "run")
    lines = results_lines(tmp_path / "run")
    kept = [line for line in lines if (line.get("condition"), line.get("phase")) != ("modular", 2)]
    rewrite_results(tmp_path / "run", kept)
    target = tmp_path / "run" / "0-modular" / damaged
    target.write_bytes(target.read_bytes()[:-7])
    ended = run("modular")
    assert ended.code != 0
    assert "crma: " in ended.error
    assert damaged.partition("/")[0] in ended.error
    assert "backends/finetune/cli/program.py" not in ended.error


def test_the_lora_of_a_task_loads_in_plain_peft(subject, tiny_model):
    import torch
    from peft import AutoPeftModelForCausalLM
    from safetensors.torch import load_file

    folder = RunFolder(subject.finished).files(0, "frozen", 1).lora
    model, ids = AutoPeftModelForCausalLM.from_pretrained(folder), torch.arange(5, 25)[None]
    stored = load_file(folder / "adapter_model.safetensors")
    loaded = {name.replace(".default", ""): value for name, value in model.named_parameters() if "lora_" in name}
    assert set(loaded) == set(stored)
    assert all(torch.equal(loaded[name], stored[name]) for name in stored)
    assert model.base_model.model.config._name_or_path == str(tiny_model)
    with torch.no_grad():
        found = model(input_ids=ids).logits
        with model.disable_adapter():
            assert not torch.equal(model(input_ids=ids).logits, found)

"""``crma certify``: a whole run passes, and each way to break it fails in the line that says so."""

import itertools
import json
import math
import re
import shutil
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import safetensors.torch

import reference
from backends.files import sha256_of
from backends.finetune.certify.certification import certify_run
from backends.finetune.conftest import results_lines, rewrite_results
from backends.finetune.runs.moments_file import write_moments
from backends.finetune.runs.results import append_record, read_results
from backends.finetune.runs.run_folder import RunFolder
from backends.torch.certificates import AdapterState, certificate, displacement, interpolate, limit_displacement
from backends.torch.data_displacement import StreamMoments, data_displacement, limit_data_displacement
from backends.torch.state import load_state, save_state
from reference import AdapterConfig
from reference.errors import ConfigError, RunFolderError

TASKS = ["A", "B", "C"]
LAYERS, STREAMS, RANK, HIDDEN, BUDGET = 2, 2, 2, 8, 0.05
CONFIG = AdapterConfig(HIDDEN, STREAMS, RANK, 20)
A, B = "x.lora_A.weight", "x.lora_B.weight"
MODULAR = ["modular", "modular@0.02", "modular@none", "modular-pinned", "modular-still"]
DATA, STILL, EPSILON = "modular@data-0.01", "modular-inherit@still-0.02", 0.01
COUNTED = 5  # tokens of a task that a moment counts
OTHERS = ["naive", "frozen", "frozen-raised", "modular-unconstrained", "replay", "full"]
NEVER_DRIFT = ("frozen", "frozen-raised", "modular-pinned", "modular-still")


def budget_of(condition):
    return {"modular@0.02": 0.02, STILL: 0.02, "modular@none": math.inf}.get(condition, BUDGET)


def random_state(generator):
    sizes = ((LAYERS, STREAMS, STREAMS), (LAYERS,), (LAYERS, STREAMS, RANK, HIDDEN))
    return AdapterState(*(torch.randn(size, generator=generator) for size in sizes))


def stored_moments(anchor, generator):
    """After each phase, of COUNTED more tokens."""
    found = [reference.StreamMoment(np.zeros((LAYERS, STREAMS * RANK, STREAMS * RANK)), 0)]
    for _ in TASKS:
        x = torch.randn(COUNTED, HIDDEN, generator=generator).numpy()
        total = np.stack([reference.stream_moment(x, basis.numpy()).total for basis in anchor.bases])
        found.append(found[-1].joined(reference.StreamMoment(total, COUNTED)))
    return found[1:]


def stored_states(condition, generator, anchor, moments):
    """The anchor, then states that the budget has pulled back to its border."""
    states = [anchor]
    for phase in range(1, len(TASKS)):
        wanted = anchor
        while float(displacement(anchor, wanted, 20).min()) < 2 * BUDGET:  # every layer needs pulling back
            wanted = AdapterState(*(a + b for a, b in zip(anchor, random_state(generator), strict=True)))
        if condition in (DATA, STILL):
            wanted = wanted._replace(bases=anchor.bases)
        if condition == "modular-still":
            wanted = anchor
        elif condition == DATA:
            before = StreamMoments(torch.from_numpy(moments[phase - 1].total), moments[phase - 1].tokens)
            wanted = interpolate(anchor, wanted, limit_data_displacement(anchor, wanted, before, EPSILON, 20))
        elif math.isfinite(budget_of(condition)):
            limit = limit_displacement(anchor, wanted, budget_of(condition), 20)
            wanted = interpolate(anchor, wanted, limit)
        states.append(wanted)
    return states


def spectral_log(state, anchor, moments=None):
    measured = certificate(state, 20)
    moved = None if anchor is None else float(displacement(anchor, state, 20).max())
    seen = None
    if anchor is not None and moments is not None:
        before = StreamMoments(torch.from_numpy(moments.total), moments.tokens)
        seen = float(data_displacement(anchor, state, before, 20).max())
    values: dict[str, Any] = {"norm_max": measured.mixing_norm.max(), "adapter_max": measured.largest.max()}
    values["adapter_min"] = measured.smallest.min()
    log: dict[str, Any] = {"steps": [2, 4], "displacement_max": [moved] * 2, "data_displacement_max": [seen] * 2}
    return log | {name: [float(value)] * 2 for name, value in values.items()}


SEEDS = itertools.count()  # other numbers for each run that is written


def write_run(folder, conditions, seeds=(0, 1), random_weights=False):
    """A finished run with random adapters, as `crma finetune` writes it."""
    seed = next(SEEDS)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    crma = {"streams": STREAMS, "rank": RANK, "iterations": 20, "displacement_budget": BUDGET, "log_every": 2}
    protocol = {"name": "tiny", "description": "", "tasks": TASKS, "train": 8, "holdout": 4, "panel": 2, "crma": crma}
    protocol |= {"lora": {"rank": 2, "alpha": 4}}
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"protocol": protocol, "backend": "torch-cpu", "model": "abc"}))
    run: dict[str, Any] = {
        "kind": "run",
        "protocol": "tiny",
        "model": "tiny-llama",
        "backend": "torch-cpu",
        "tasks": TASKS,
    }
    run |= {"conditions": list(conditions), "seeds": list(seeds), "config": protocol, "displacement_budget": BUDGET}
    for seed in seeds:
        (folder / f"tasks-{seed}.json").write_text(json.dumps(dict.fromkeys(TASKS, "0")))
    run["files"] = {path.name: sha256_of(path) for path in folder.glob("*.json")}
    append_record(folder / "results.jsonl", run | {"random_weights": random_weights})
    for seed in seeds:
        for condition in conditions:
            branch = folder / f"{seed}-{condition}"
            branch.mkdir()
            holdout: dict[str, float] = {}
            anchor = random_state(generator)
            moments = stored_moments(anchor, generator) if condition == DATA else []
            is_modular = condition.startswith("modular")
            states = stored_states(condition, generator, anchor, moments) if is_modular else []
            for phase, task in enumerate(TASKS):
                if condition not in NEVER_DRIFT:
                    holdout = {name: loss * rng.uniform(1.001, 1.01) for name, loss in holdout.items()}
                holdout[task] = rng.uniform(1, 2)
                record = {"kind": "phase", "condition": condition, "seed": seed, "phase": phase, "task": task}
                record |= {"losses": [1.0] * 4, "holdout": holdout, "seconds": 1.0, "tokens": 9}
                if moments:
                    write_moments(branch / f"moments-{phase}.safetensors", *moments[phase])
                    record["texts"] = {"train": {"texts": 9 - COUNTED, "cut": 0, "cut_tokens": 0}}
                record["gradient_norms"] = {"lora": [0.5] * 4}
                record["parameters"] = {"lora": 12} if condition != "full" else {"full": 3}
                if states:
                    record["parameters"]["crma"] = sum(tensor.numel() for tensor in states[phase])
                    record["spectral"] = spectral_log(
                        states[phase],
                        states[0] if phase else None,
                        moments[phase - 1] if phase and condition == DATA else None,
                    )
                if condition == "modular-unconstrained":
                    tensors = dict(zip(("mixing", "gate_logits", "bases"), states[phase], strict=True))
                    safetensors.torch.save_file(tensors, branch / f"mixing-{phase}.safetensors")
                    record["spectral"]["norm_max"] = [1.3] * 2
                elif states:
                    path = branch / f"crma-{phase}.safetensors"
                    save_state(path, states[phase], CONFIG, "a tiny Llama", "f" * 64)
                if condition == "full":
                    tensors = {"w": torch.randn(3, generator=generator)}
                    safetensors.torch.save_file(tensors, branch / f"model-{phase}.safetensors")
                else:
                    lora = branch / f"task-{phase}"
                    lora.mkdir()
                    tensors = {A: torch.randn(2, 3, generator=generator), B: torch.zeros(3, 2)}
                    safetensors.torch.save_file(tensors, lora / "adapter_model.safetensors")
                    (lora / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 4, "use_dora": false}')
                record["files"] = RunFolder(folder).digests(seed, condition, phase)
                append_record(folder / "results.jsonl", record)
            if states:
                answers = {"with_crma": [True] * 6, "without_crma": [False, True] * 3}
                panel = {"kind": "panel", "condition": condition, "seed": seed, **answers}
                append_record(folder / "results.jsonl", panel | {"tasks": [task for task in TASKS for _ in range(2)]})
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("certify") / "run", MODULAR + OTHERS)


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def fit_digests(run):
    """Record the files as they are now, as somebody would who hides what was changed."""
    lines = results_lines(run)
    for line in lines:
        present = [name for name in line.get("files", {}) if (run / name).exists()]
        line["files"] = {name: sha256_of(run / name) for name in present}
    rewrite_results(run, lines)


def failures(folder, *, fit=True, **options):
    """(condition, seed, name) -> reason, of every failed check; where ``fit``, with digests that were made to fit."""
    if fit:
        fit_digests(folder)
    checks = certify_run(folder, **options).checks
    return {(check.condition, check.seed, check.name): check.reason for check in checks if check.verdict == "fail"}


def edit_record(run, condition, phase, change, seed=0):
    """Change one phase's record of results.jsonl in place."""
    lines = results_lines(run)
    (record,) = (
        line
        for line in lines
        if (line.get("condition"), line.get("seed"), line.get("phase")) == (condition, seed, phase)
    )
    change(record)
    rewrite_results(run, lines)


def test_a_finished_run_passes_every_promise_and_nothing_else_is_called_passed(run):
    certification = certify_run(run)
    assert failures(run) == {}
    assert certification.passed
    by_condition: dict[str, dict[str, str]] = {}
    for check in certification.checks:
        by_condition.setdefault(check.condition, {})[check.name] = check.verdict
    assert by_condition["modular"]["displacement, stored"] == "pass"
    assert by_condition["modular"]["displacement, any two"] == "pass"
    assert by_condition["modular"]["drift, %"] == "not promised"
    assert by_condition["modular@none"]["displacement, stored"] == "not promised"
    assert by_condition["modular-still"]["CRMA unchanged"] == "pass"
    assert by_condition["modular-unconstrained"]["norm of M, logged"] == "not promised"
    for condition in NEVER_DRIFT:
        assert by_condition[condition]["drift exactly 0, nats"] == "pass"
    for condition in ("naive", "replay", "full"):
        assert by_condition[condition]["spectral bounds"] == "not promised"
        assert by_condition[condition]["drift, %"] == "not promised"
        assert set(by_condition[condition].values()) == {"pass", "not promised"}


@pytest.mark.clause("BUDGET-1", "CERT-2")
def test_the_measured_displacement_is_the_budget_where_the_budget_pulls(run):
    found: dict[Any, Any] = {(c.condition, c.name): c for c in certify_run(run).checks if c.seed == 0}
    for condition in ("modular", "modular@0.02"):
        check = found[condition, "displacement, stored"]
        assert check.value == pytest.approx(budget_of(condition), rel=1e-3)
        assert 0 <= check.margin < 1e-4 * budget_of(condition) + 1e-6
    assert found["modular@none", "displacement, stored"].value > BUDGET
    assert 0 < found["modular", "displacement, any two"].value <= 2 * BUDGET + 2e-6


@pytest.mark.clause("SINK-5", "SINK-6", "MIX-7", "CERT-1")
def test_the_norms_are_measured_not_assumed(run):
    found = {(c.condition, c.name): c for c in certify_run(run).checks if c.seed == 1 and c.value is not None}
    measured = [certificate(load_state(run / f"1-modular/crma-{p}.safetensors").state, 20) for p in range(3)]
    assert found["modular", "norm of M, stored"].value == max(float(m.mixing_norm.max()) for m in measured)
    assert found["modular", "sums of M − 1, stored"].value == max(float(m.sum_error.max()) for m in measured)
    assert found["modular", "norm of adapter, float64"].value == pytest.approx(1, abs=1e-12)


@pytest.mark.clause("CL-5")
def test_frozen_that_drifts_by_one_unit_in_the_last_place_fails(run):
    def one_ulp(record):
        record["holdout"]["A"] = float(np.nextafter(record["holdout"]["A"], 9))

    for condition in ("frozen", "modular-pinned"):
        edit_record(run, condition, 1, one_ulp)  # not even the final row
    edit_record(run, "naive", 1, one_ulp)
    assert set(failures(run)) == {(name, 0, "drift exactly 0, nats") for name in ("frozen", "modular-pinned")}


def test_a_state_outside_the_budget_fails_and_so_does_its_distance_to_others(run):
    anchor, config, *rest = load_state(run / "0-modular/crma-0.safetensors")
    path = run / "0-modular/crma-1.safetensors"
    save_state(path, AdapterState(anchor.mix_logits, anchor.gate_logits + 3, anchor.bases * 1), config, *rest)
    found = failures(run)
    assert {("modular", 0, name) for name in ("displacement, stored", "stored states as logged")} <= set(found)
    assert "above the bound" in found["modular", 0, "displacement, stored"]
    assert all(key[:2] == ("modular", 0) for key in found)


def test_a_state_of_another_seed_is_not_the_one_that_was_logged(run):
    for phase in range(3):
        shutil.copy(run / f"1-modular/crma-{phase}.safetensors", run / f"0-modular/crma-{phase}.safetensors")
    assert set(failures(run)) == {("modular", 0, "stored states as logged")}


@pytest.mark.clause("STATE-4")
def test_damaged_and_missing_state_files_fail_by_name(run):
    path = run / "0-modular/crma-2.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    (run / "1-modular/crma-0.safetensors").unlink()
    found = failures(run)
    assert re.search(r"0-modular/crma-2.*damaged bits", found["modular", 0, "state files whole"])
    assert re.search(r"1-modular/crma-0.*No such file", found["modular", 1, "state files whole"])
    assert "anchor" in found["modular", 1, "displacement, stored"]


def test_a_changed_adapter_after_training_was_to_be_still_fails(run):
    state, config, *rest = load_state(run / "0-modular-still/crma-2.safetensors")
    state.bases[1, 0, 0, 0] = torch.nextafter(state.bases[1, 0, 0, 0], torch.tensor(9.0))
    save_state(run / "0-modular-still/crma-2.safetensors", state, config, *rest)
    found = failures(run)
    assert set(found) == {("modular-still", 0, "CRMA unchanged")}
    assert "crma-2.safetensors differs from" in found["modular-still", 0, "CRMA unchanged"]


def test_adapters_that_are_missing_cut_short_or_not_finite_fail_by_name(run):
    (run / "0-frozen/task-1/adapter_model.safetensors").unlink()
    cut = run / "1-frozen/task-0/adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    nan = {A: torch.full((2, 3), torch.nan), B: torch.zeros(3, 2)}
    safetensors.torch.save_file(nan, run / "0-modular/task-2/adapter_model.safetensors")
    other = {A: torch.zeros(2, 4), B: torch.zeros(3, 2)}
    safetensors.torch.save_file(other, run / "1-modular/task-2/adapter_model.safetensors")
    (run / "0-replay/task-2/adapter_config.json").write_text("{")
    (run / "0-full/model-2.safetensors").unlink()
    (run / "0-modular-unconstrained/mixing-1.safetensors").unlink()
    (run / "0-naive/task-0/adapter_model.safetensors").unlink()  # only the last one answers
    found = failures(run)
    name = "adapter files whole"
    assert found.pop(("frozen", 0, name)) == "0-frozen/task-1/adapter_model.safetensors: missing"
    assert "1-frozen/task-0/adapter_model.safetensors: Safetensor" in found.pop(("frozen", 1, name))
    assert found.pop(("modular", 0, name)) == f"0-modular/task-2/adapter_model.safetensors: {A} is not finite"
    assert "other names or shapes" in found.pop(("modular", 1, name))
    assert "adapter_config.json: " in found.pop(("replay", 0, name))
    assert found.pop(("full", 0, "model file whole")) == "0-full/model-2.safetensors: missing"
    assert "mixing-1.safetensors: missing" in found.pop(("modular-unconstrained", 0, name))
    gone = {key[:2] for key, reason in found.items() if key[2] == "files as recorded" and "not in the record" in reason}
    assert gone == {("frozen", 0), ("full", 0), ("modular-unconstrained", 0), ("naive", 0)}
    found = {key: reason for key, reason in found.items() if key[2] != "files as recorded"}
    assert "12 parameters of lora" in found.pop(("modular", 1, "records as training writes them"))
    assert found == {}


def test_logged_values_beyond_their_bounds_fail(run):
    def beyond(record):
        record["spectral"]["norm_max"][0] = 1 + 6e-7
        record["spectral"]["adapter_max"][1] = 1 + 5e-7 + 1e-9
        record["spectral"]["displacement_max"][0] = BUDGET + 2e-6

    edit_record(run, "modular", 1, beyond)
    wanted = {("modular", 0, name) for name in ("norm of M, logged", "norm of adapter, logged", "displacement, logged")}
    assert set(failures(run)) == wanted
    edit_record(run, "modular-pinned", 2, lambda record: record.update(spectral=None))
    assert ("modular-pinned", 0, "certificates logged") in failures(run)


def test_an_unfinished_run_fails(run):
    file = run / "results.jsonl"
    file.write_text("".join(line + "\n" for line in file.read_text().splitlines()[:-1]))
    assert failures(run)["full", 1, "holdout matrix complete"] == "2 of 3 phases are recorded"


def test_a_condition_that_is_not_known_fails_by_name(tmp_path):
    found = failures(write_run(tmp_path / "run", ["frozen", "wild"], seeds=(0,)))
    assert set(found) == {("wild", None, "condition known")}


def test_nan_or_damage_in_the_results_fails_with_the_line(run):
    file = run / "results.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1].replace('"seconds": 1.0', '"seconds": NaN'), *lines[2:]]) + "\n")
    certification = certify_run(run)
    assert not certification.passed
    assert [(check.name, "line 2" in check.reason) for check in certification.checks] == [("results readable", True)]
    json.dumps(certification.as_json(), allow_nan=False)


def test_files_of_another_run_or_another_model_fail(run):
    name = ("run", None, "files belong to this run")
    identity = json.loads((run / "run.json").read_text())
    identity["protocol"]["crma"]["streams"] = 4
    (run / "run.json").write_text(json.dumps(identity))
    assert "crma" in failures(run)[name]
    identity["protocol"]["crma"]["streams"] = STREAMS
    (run / "run.json").write_text(json.dumps(identity))
    assert failures(run) == {}
    path = run / "1-modular/crma-1.safetensors"
    state, config, base, _ = load_state(path)
    save_state(path, state, config, base, "e" * 64)
    assert failures(run) == {name: "1-modular/crma-1.safetensors: architecture of another base model than "
                                   "0-modular/crma-0.safetensors"}  # fmt: skip
    (run / "tasks-1.json").unlink()
    assert "tasks-1.json" in failures(run)[name]


def edit_run_record(run, change):
    """Change the first line of results.jsonl in place."""
    lines = results_lines(run)
    change(lines[0])
    rewrite_results(run, lines)


@pytest.mark.clause("BUDGET-1", "DATA-3")
@pytest.mark.parametrize(
    ("name", "kept", "budget"),
    [("displacement_budget", 0.05, 100.0), ("displacement_budget", 0.05, None), ("data_budget", None, 0.1)],
)
def test_a_budget_that_is_not_the_protocols_fails(run, name, kept, budget):
    edit_run_record(run, lambda record: record.update({name: budget}))
    reason = failures(run)["run", None, "files belong to this run"]
    assert f"{name} {kept}, results.jsonl: {budget}" in reason


def test_adapters_without_a_record_fail(run):
    edit_run_record(run, lambda record: record["conditions"].remove("modular"))
    rewrite_results(run, [line for line in results_lines(run) if line.get("condition") != "modular"])
    assert set(failures(run)) == {("run", None, "files belong to this run")}
    assert "0-modular: a folder of adapters that results.jsonl does not speak of" in str(failures(run))


def test_a_limit_for_drift_is_kept_or_broken(run):
    assert failures(run, max_drift=5.0) == {}
    own = read_results(run).phases["modular", 0, 0].holdout["A"]
    edit_record(run, "modular", 2, lambda record: record["holdout"].update(A=own * 1.0501))
    found = failures(run, max_drift=5.0)
    assert set(found) == {("modular", 0, "drift of every task, %")}
    with pytest.raises(ConfigError, match="--max-drift"):
        certify_run(run, max_drift=math.nan)


def test_a_limit_for_drift_needs_modular(tmp_path):
    with pytest.raises(ConfigError, match="without MODULAR"):
        certify_run(write_run(tmp_path / "run", ["frozen"]), max_drift=1.0)


def test_a_folder_that_is_no_run_is_unusable_input(tmp_path):
    with pytest.raises(RunFolderError, match="no folder"):
        certify_run(tmp_path / "absent")
    with pytest.raises(RunFolderError, match=r"without results\.jsonl"):
        certify_run(tmp_path)
    write_run(tmp_path / "order-1-2-3", ["frozen"])
    with pytest.raises(RunFolderError, match="one of its folders order-"):
        certify_run(tmp_path)


def test_the_command_prints_the_verdict_writes_json_and_says_it_in_its_exit_code(run, tmp_path, crma):
    file = tmp_path / "certificate.json"
    arguments = ["certify", str(run), "--json", str(file), "--max-drift", "50"]
    code, out, _ = crma(arguments)
    assert code == 0
    assert "PASS" in out
    assert "not promised" in out
    assert "Not checked:" in out
    content = json.loads(file.read_text())
    assert content["verdict"] == "pass"
    assert content["spec_version"] in out
    assert {check["verdict"] for check in content["checks"]} == {"pass", "not promised"}
    assert {check["name"] for check in content["checks"]} == set(content["promises"])
    assert "0-modular/crma-0.safetensors" in content["sha256"]
    assert all(len(digest) == 64 for digest in content["sha256"].values())

    (run / "0-modular/crma-1.safetensors").unlink()
    code, out, _ = crma(arguments)
    assert code == 1
    assert "FAIL MODULAR, seed 0: state files whole" in out.replace("\n", " ")
    assert json.loads(file.read_text())["verdict"] == "fail"


def test_a_run_with_random_weights_says_so(tmp_path, crma):
    folder = write_run(tmp_path / "run", ["frozen", "modular"], seeds=(0,), random_weights=True)
    code, out, _ = crma(["certify", str(folder)])
    assert code == 0
    assert out.count("random weights") == 2


@pytest.mark.slow
def test_a_run_of_the_command_passes(tmp_path, finetune_command, crma):
    code, _, error = crma(finetune_command(tmp_path / "run"))
    assert code == 0, error
    assert failures(tmp_path / "run") == {}

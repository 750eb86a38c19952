"""results.jsonl: what is written comes back, a crash costs one line at most, and damage is named by file and line."""

import json
import os

import numpy as np
import pytest

import reference
from backends.finetune.conftest import rewrite_results
from backends.finetune.runs.results import _sealed, append_record, read_results
from reference.errors import CRMAError, DiskSpaceError, NonFiniteError, RunFolderError

TASKS = ["Medical", "Legal", "Financial"]


def run_record(**changes):
    record = {"kind": "run", "protocol": "p", "model": "m", "backend": "reference", "tasks": TASKS}
    return record | {"conditions": ["modular", "frozen"], "seeds": [0, 7]} | changes


def phase_record(rng, condition="modular", seed=0, phase=0, **changes):
    record = {
        "kind": "phase", "condition": condition, "seed": seed, "phase": phase, "task": TASKS[phase % 3],
        "losses": rng.uniform(1, 3, 8).tolist(), "seconds": 2.5, "tokens": 1000, "spectral": None,
        "holdout": {task: float(rng.uniform(1, 3)) for task in TASKS[: phase + 1]},
    }  # fmt: skip
    return record | changes


def spectral(**changes):
    log = {"steps": [4, 8], "norm_max": [1.0, 1.0], "adapter_max": [1.0, 1.0], "adapter_min": [0.9, 0.8]}
    return log | {"displacement_max": [None, 0.1]} | changes


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def file(tmp_path):
    append_record(tmp_path / "results.jsonl", run_record())
    return tmp_path / "results.jsonl"


@pytest.mark.clause("CL-1")
def test_holdout_matrix_holds_what_was_appended_and_nan_elsewhere(file, rng):
    records = [phase_record(rng, phase=phase) for phase in range(2)]
    for record in records:
        append_record(file, record)
    expected = np.full((3, 3), np.nan)
    expected[0, 0] = records[0]["holdout"]["Medical"]
    expected[1, :2] = [records[1]["holdout"][task] for task in TASKS[:2]]
    np.testing.assert_array_equal(read_results(file).holdout_matrix("modular", 0), expected)


@pytest.mark.clause("CL-2", "CL-3", "CL-4")
def test_metrics_and_advantage_appear_with_the_last_phase(file, rng):
    for condition in ("frozen", "modular"):
        for phase in range(3):
            assert read_results(file).metrics(condition, 7) is None
            assert read_results(file).advantage("modular", 7) is None
            append_record(file, phase_record(rng, condition, 7, phase))
    results = read_results(file.parent)
    frozen, modular = (results.metrics(condition, 7) for condition in ("frozen", "modular"))
    assert frozen is not None
    assert modular is not None
    last = results.phases_of("modular", 7)[-1].holdout
    assert modular.final_holdout == pytest.approx(np.mean(list(last.values())), rel=1e-12)
    assert modular.drift == reference.continual_metrics(results.holdout_matrix("modular", 7)).drift
    assert results.advantage("modular", 7) == pytest.approx(1 - modular.final_holdout / frozen.final_holdout, abs=1e-12)
    assert results.metrics("modular", 0) is None
    assert results.complete_seeds("modular") == [7]


def test_advantage_is_none_without_frozen(tmp_path, rng):
    append_record(tmp_path / "results.jsonl", run_record(conditions=["naive"], seeds=[0]))
    for phase in range(3):
        append_record(tmp_path / "results.jsonl", phase_record(rng, "naive", 0, phase))
    results = read_results(tmp_path)
    assert results.metrics("naive", 0) is not None
    assert results.advantage("naive", 0) is None


def append_phases(file, rng, asked, phases=3):
    """The first ``phases`` phases of modular; exact matches of the tasks ``asked``, which they return by phase."""
    matches = []
    for phase in range(phases):
        matches.append({task: int(rng.integers(51)) / 50 for task in TASKS[: phase + 1] if task in asked})
        append_record(file, phase_record(rng, phase=phase, exact_match=matches[-1]))
    return matches


@pytest.mark.clause("CL-7")
def test_exact_match_transfer_is_the_mean_change_of_the_prior_tasks_and_comes_with_the_last_phase(file, rng):
    for phases in (1, 2):
        append_phases(file, rng, TASKS, phases)
        assert read_results(file).exact_match_transfer("modular", 0) is None
    first, second, last = append_phases(file, rng, TASKS)
    results = read_results(file)
    expected = (last["Medical"] - first["Medical"] + last["Legal"] - second["Legal"]) / 2
    assert results.exact_match_transfer("modular", 0) == pytest.approx(expected, abs=1e-12)
    np.testing.assert_array_equal(results.exact_match_matrix("modular", 0)[1], [*second.values(), np.nan])
    assert results.exact_match_transfer("modular", 7) is None


@pytest.mark.clause("CL-7")
@pytest.mark.parametrize("asked", [["Legal"], ["Legal", "Financial"]])
def test_exact_match_transfer_leaves_out_tasks_without_canaries(file, rng, asked):
    _, second, last = append_phases(file, rng, asked)
    transfer = read_results(file).exact_match_transfer("modular", 0)
    assert transfer == pytest.approx(last["Legal"] - second["Legal"], abs=1e-12)


@pytest.mark.parametrize("asked", [[], ["Financial"]])
def test_without_canaries_of_prior_tasks_there_is_no_exact_match_transfer(file, rng, asked):
    append_phases(file, rng, asked)
    results = read_results(file)
    assert results.exact_match_transfer("modular", 0) is None
    assert results.has_canaries == bool(asked)


def test_parameters_are_those_of_the_condition(file, rng):
    append_record(file, phase_record(rng, "modular", parameters={"lora": 928, "crma": 138}))
    append_record(file, phase_record(rng, "frozen-raised", parameters={"lora": 1392}))
    results = read_results(file)
    assert results.parameters("modular") == {"lora": 928, "crma": 138}
    assert results.parameters("frozen-raised") == {"lora": 1392}
    assert results.parameters("frozen") == {}


def test_a_panel_whose_lists_differ_in_length_is_refused(file):
    panel = {"kind": "panel", "condition": "modular", "seed": 0, "tasks": ["A", "A"], "with_crma": [True, True]}
    with pytest.raises(RunFolderError, match="differ in length"):
        append_record(file, panel | {"without_crma": [True]})
    with pytest.raises(RunFolderError, match="differ in length"):
        append_record(file, panel | {"without_crma": [True, True], "without_lora": [True, True]})


def test_a_repeated_phase_counts_once_the_last_time(file, rng):
    for _ in range(2):
        last = phase_record(rng)
        append_record(file, last)
    assert read_results(file).phases_of("modular", 0)[0].holdout == last["holdout"]


def test_phases_after_a_gap_do_not_count(file, rng):
    append_record(file, phase_record(rng, phase=1))
    results = read_results(file)
    assert results.phases_of("modular", 0) == []
    assert np.isnan(results.holdout_matrix("modular", 0)).all()


def test_seeds_and_conditions_added_on_resume_are_joined_in_the_usual_order(file):
    append_record(file, run_record(conditions=["ewc", "naive"], seeds=[7, 9]))
    results = read_results(file)
    assert results.conditions == ("naive", "frozen", "modular", "ewc")
    assert results.seeds == (0, 7, 9)


def test_unknown_kinds_and_fields_are_left_alone(file, rng):
    append_record(file, {"kind": "router", "matrix": [[1]]})
    append_record(file, phase_record(rng, new_field={"a": 1}))
    assert len(read_results(file).phases) == 1


def test_numpy_values_are_written_as_json(file, rng):
    losses = rng.uniform(1, 3, 8).astype(np.float32)
    append_record(file, phase_record(rng, losses=losses, tokens=np.int64(12), spectral=spectral()))
    record = read_results(file).phases["modular", 0, 0]
    assert record.losses == losses.tolist()
    assert record.tokens == 12
    assert record.spectral is not None
    assert record.spectral.displacement_max == [None, 0.1]


def test_a_last_line_cut_anywhere_is_ignored_and_replaced_by_the_next_append(file, rng):
    whole = file.read_bytes()
    first, second = (phase_record(rng, phase=phase, task=TASKS[phase]) for phase in range(2))
    line = json.dumps(first).encode() + b"\n"
    for length in (1, len(line) // 2, len(line) - 2):
        file.write_bytes(whole + line[:length])
        assert read_results(file).phases == {}
        append_record(file, first)
        append_record(file, second)
        assert [record.holdout for record in read_results(file).phases_of("modular", 0)] == [
            first["holdout"],
            second["holdout"],
        ]


def test_a_whole_last_line_without_line_end_counts_and_survives_an_append(file, rng):
    first, second = (phase_record(rng, phase=phase) for phase in range(2))
    append_record(file, first)
    file.write_bytes(file.read_bytes().removesuffix(b"\n"))
    assert len(read_results(file).phases) == 1
    append_record(file, second)
    assert len(read_results(file).phases) == 2


@pytest.mark.clause("ERR-2")
@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"kind": "phase", "condi', "one JSON object per line"),
        (b"[1, 2]", "got a JSON list"),
        (b"\xff\xfe", "one JSON object per line"),
        (b'{"kind": "phase", "loss": NaN}', "NaN is not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"kind": "router"}', "no sha256 at its end"),
        (_sealed(b'{"kind": "router"}', b"").rstrip(), "content that does not give its sha256"),
    ],
)
def test_a_damaged_line_is_named(file, line, complaint):
    file.write_bytes(file.read_bytes() + line + b"\n" + json.dumps(run_record()).encode() + b"\n")
    with pytest.raises(RunFolderError) as caught:
        read_results(file)
    assert f"{file}, line 2" in str(caught.value)
    assert complaint in str(caught.value)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ({"kind": "run", "protocol": "p"}, "run record with a faulty model"),
        (run_record(tasks=["Other"]), r"tasks \['Other'\]"),
        (run_record(tasks=["A", "A"]), "two tasks share a name"),
    ],
)
def test_a_second_run_record_is_whole_and_of_the_same_tasks(file, record, complaint):
    rewrite_results(file.parent, [run_record(), record])
    with pytest.raises(RunFolderError, match=f"line 2: got .*{complaint}"):
        read_results(file)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"phase": 3}, "phase 3 of task 'Medical'"),
        ({"phase": 1, "task": "Medical"}, "phase 1 of task 'Medical'"),
        ({"task": "Code"}, "phase 0 of task 'Code'"),
        ({"holdout": {"Legal": 1.0}}, r"no holdout loss for \['Medical'\]"),
    ],
)
def test_a_phase_that_contradicts_the_run_is_refused(file, rng, changes, complaint):
    append_record(file, phase_record(rng, **changes))
    with pytest.raises(RunFolderError, match=f"line 2: got {complaint}"):
        read_results(file)


@pytest.mark.clause("ERR-4")
@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"losses": [float("nan")]}, NonFiniteError, "not JSON compliant"),
        ({"holdout": {"Medical": float("inf")}}, NonFiniteError, "not JSON compliant"),
        ({"phase": -1}, RunFolderError, "faulty phase"),
        ({"losses": "many"}, RunFolderError, "faulty losses"),
        ({"holdout": {"Medical": None}}, RunFolderError, r"faulty holdout\.Medical"),
        ({"spectral": spectral(norm_max=[1.0])}, RunFolderError, "norm_max has 1 values for 2 steps"),
        ({"spectral": spectral(steps=[8, 4])}, RunFolderError, "steps do not increase"),
        ({"spectral": spectral(steps=[8, 9])}, RunFolderError, "the phase has 8 steps"),
    ],
)
def test_a_bad_record_is_neither_appended_nor_read(file, rng, changes, error, complaint):
    before, record = file.read_bytes(), phase_record(rng, **changes)
    with pytest.raises(error, match=complaint):
        append_record(file, record)
    assert file.read_bytes() == before
    rewrite_results(file.parent, [run_record(), record])
    with pytest.raises(RunFolderError, match="line 2"):
        read_results(file)


@pytest.mark.clause("ERR-4")
def test_a_full_disk_is_reported_and_leaves_the_file_as_it_was(file, rng, monkeypatch):
    before = file.read_bytes()
    write = os.write

    def full_after_ten_bytes(descriptor, data):
        if len(data) > 10 and os.fstat(descriptor).st_size == len(before):
            return write(descriptor, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full_after_ten_bytes)
    with pytest.raises(DiskSpaceError, match="space"):
        append_record(file, phase_record(rng))
    assert file.read_bytes() == before


@pytest.mark.parametrize("content", [None, b"", b'{"kind": "run", "prot', b'{"kind": "router"}\n'])
def test_a_missing_or_unstarted_file_is_one_clear_error(tmp_path, content):
    if content is not None:
        (tmp_path / "results.jsonl").write_bytes(content)
    with pytest.raises(CRMAError, match=r"results\.jsonl|folder"):
        read_results(tmp_path)


def test_append_to_a_folder_that_is_missing_is_one_clear_error(tmp_path):
    with pytest.raises(RunFolderError, match="No such file"):
        append_record(tmp_path / "missing" / "results.jsonl", run_record())

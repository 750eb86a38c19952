"""The measuring programs of bench/: a mistake is one message, and a file says what its figures are of."""

import json
import shutil

import numpy as np
import pytest

from reference.errors import BackendError

torch = pytest.importorskip("torch", reason="pip install 'crma[finetune]'")
pytest.importorskip("transformers", reason="pip install 'crma[finetune]'")
pytest.importorskip("peft", reason="pip install 'crma[finetune]'")

from backends.finetune.runs.results import append_record
from bench import collect_runs, full_size, memory, plan_check

MODEL = "tinyllama-1.1b"
SMALL = ["--models", MODEL, "--size", "reduced", "--steps", "2", "--threads", "1", "--set", "max_tokens=16"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of its own for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRMA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("CRMA_MODELS", raising=False)
        patch.setenv("NPROC", "1")  # what --threads sets for JAX; given back at the end
        yield


@pytest.fixture
def failing(capfd):
    """Run a program that is to fail: its one message."""

    def run(program, *arguments):
        capfd.readouterr()
        assert program.main(list(map(str, arguments))) == 2
        out, err = capfd.readouterr()
        assert out == ""
        (message,) = err.splitlines()
        return message

    return run


@pytest.fixture
def finished(tmp_path):
    """Write a run folder with one finished phase, given what its run record has besides."""

    def write(condition="frozen", holdout=1.5, **fields):
        folder = tmp_path / f"run-{condition}"
        folder.mkdir()
        config = {"tasks": ["a"], "seeds": [0], "conditions": [condition]}
        record = {"protocol": "p", "model": "m", "backend": "torch-cpu", **config, "config": config}
        append_record(folder / "results.jsonl", {"kind": "run"} | record | fields)
        phase = {"condition": condition, "seed": 0, "phase": 0, "task": "a", "losses": [2.0], "holdout": {"a": holdout}}
        append_record(folder / "results.jsonl", {"kind": "phase", "seconds": 1.0, "tokens": 9} | phase)
        return folder

    return write


@pytest.fixture
def blocked(tmp_path):
    """A path that no file can have."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "x.json"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "nope"], "model: got 'nope' with random weights"),
        (["--models", "nope", "--weights"], "model: got 'nope'"),
        (["--models", MODEL, "--set", "nope=1"], "gemma-five-phase.toml: nope"),
        (["--models", MODEL, "--set", "quantization=4bit"], "quantization: got '4bit' with random weights"),
        (["--models", MODEL, "--steps", "0"], "--steps: got 0"),
        (["--models", MODEL, "--backend", "jax-cpu"], "--size: got full with jax-cpu"),
        (["--models", MODEL, "--backend", "jax-cuda", "--set", "packing=true", "--size", "reduced"], "packing: got"),
    ],
)
def test_a_mistake_is_one_message_before_anything_is_measured(failing, monkeypatch, arguments, message):
    monkeypatch.setattr(full_size, "peak_in_own_process", None)
    assert failing(full_size, *arguments).startswith(f"full_size: {message}")


def test_a_file_that_cannot_be_written_is_one_message(failing, finished, blocked, monkeypatch):
    for program in (full_size, plan_check):
        monkeypatch.setattr(program, "peak_in_own_process", None)  # nothing is measured first
    for program, arguments in (
        (collect_runs, [finished()]),
        (full_size, SMALL),
        (plan_check, ["--model", MODEL, "--random-weights", "reduced"]),
    ):
        message = failing(program, *arguments, "--out", blocked)
        assert message.startswith(f"{program.__name__.partition('.')[2]}: [Errno")
        assert "Check --out" in message


def test_a_plan_of_no_model_is_one_message(failing):
    assert failing(plan_check, "--model", "no/such").startswith("plan_check: model: got 'no/such'")


def test_what_a_process_died_of_is_one_line():
    with pytest.raises(BackendError, match="exit status 2: full_size: model: got 'nope'") as caught:
        memory.peak_in_own_process("bench.full_size", ["--models", "nope"], "nope:frozen")
    assert "\n" not in str(caught.value)


def test_a_collected_run_says_whether_its_weights_are_random(finished, tmp_path):
    folder = finished(random_weights=True)
    out = tmp_path / "new" / "figures.json"
    assert collect_runs.main([str(folder), "--out", str(out)]) == 0
    (run,) = json.loads(out.read_text())
    assert run["random_weights"] is True
    assert run["rows"][0]["final_holdout"] == 1.5


def test_a_run_joins_what_is_stored_though_its_folder_is_gone(finished, tmp_path, failing):
    out, first = tmp_path / "figures.json", finished()
    assert collect_runs.main([str(first), "--out", str(out)]) == 0
    shutil.rmtree(first)
    later = finished("modular", 1.2)
    for _ in range(2):  # a second time it takes its own place
        assert collect_runs.main([str(later), "--add", "--out", str(out)]) == 0
        (run,) = json.loads(out.read_text())
        assert [(row["condition"], row["advantage"]) for row in run["rows"]] == [
            ("frozen", 0.0),
            ("modular", pytest.approx(0.2)),
        ]
    before = out.read_bytes()
    other = finished("ewc", 1.2, random_weights=True)
    assert "got folders that differ in random_weights" in failing(collect_runs, other, "--add", "--out", out)
    message = failing(collect_runs, finished("naive", 1.2, machine="other"), "--add", "--out", out)
    assert "got folders that differ in machine" in message
    assert out.read_bytes() == before
    assert "figures.json" in failing(collect_runs, later, "--add", "--out", tmp_path / "no" / "figures.json")


@pytest.mark.parametrize("backend", ["torch-cpu", "jax-cpu"])
def test_steps_are_measured_and_peak_memory_with_them(backend, capfd):
    if backend == "jax-cpu":
        pytest.importorskip("optax", reason="pip install 'crma[jax]'")
        pytest.importorskip("jax", reason="pip install 'crma[jax]'")
    assert full_size.main([*SMALL, "--backend", backend, "--peak-of", f"{MODEL}:modular"]) == 0
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert found["machine"] == {"device": "cpu", "processor": found["machine"]["processor"], "threads": 1}
    assert backend.partition("-")[0] in found["versions"]
    assert len(found["step_seconds"]) == 4
    assert found["step_seconds_median"] > 0
    assert found["peak_bytes"] > 2**25
    assert [len(phase["losses"]) for phase in found["phases"]] == [2, 2]
    assert found["phases"][0]["spectral"][0]["norm_max"] == pytest.approx(1, abs=1e-6)


def test_the_file_is_written_anew_after_each_model(tmp_path, failing, monkeypatch):
    """Here the second one fails."""
    out, rng = tmp_path / "figures.json", np.random.default_rng(0)
    seconds = {name: float(rng.uniform(1, 2)) for name in full_size.CONDITIONS}

    def measured(module, arguments, side):
        model, name = side.split(":")
        if model != MODEL:
            raise BackendError(side, got="1", allowed="0", remedy="none")
        return {"step_seconds_median": seconds[name], "machine": {"device": "cpu"}, "versions": {"torch": "2"}}

    monkeypatch.setattr(full_size, "peak_in_own_process", measured)
    models = ["--models", MODEL, "saul-7b", "--size", "reduced", "--out", out]
    assert "saul-7b:frozen" in failing(full_size, *models)
    found = json.loads(out.read_text())
    assert list(found["models"]) == [MODEL]
    assert (found["random_weights"], found["machine"]) == ("reduced", {"device": "cpu"})
    ratio = seconds["modular"] / seconds["frozen"]
    assert found["models"][MODEL]["overhead_of_crma"] == pytest.approx(ratio - 1)
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]  # no half of it


def test_jax_counts_its_own_memory_of_a_gpu(monkeypatch):
    jax = pytest.importorskip("jax", reason="pip install 'crma[jax]'")

    class Device:
        def __init__(self, statistics):
            self.statistics = statistics

        def memory_stats(self):
            return self.statistics

    def asked(*_):
        raise AssertionError("PyTorch does not know what JAX takes")

    for name in ("max_memory_allocated", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, asked)
    assert not memory.reset_peak("cuda", "jax")
    for statistics, expected in (({"peak_bytes_in_use": 7}, 7), ({}, None), (None, None)):
        monkeypatch.setattr(jax, "local_devices", lambda backend, found=statistics: [Device(found)])
        assert memory.peak_bytes("cuda", "jax") == expected
    of_process = memory.peak_bytes("cpu", "jax")
    assert of_process is not None
    assert of_process > 2**25

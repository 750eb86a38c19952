"""bench.compare: finds a slowdown, is silent on noise, and refuses what cannot be compared."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.compare import compare, main, ratio_and_bound
from bench.timings import Timings, joined, read_timings
from reference.errors import ConfigError

KIND = {"device": "cpu", "processor": "a processor", "threads": 1}
VERSIONS = {"python": "3.12.0", "torch": "2.13.0"}
NAMES = [f"bench/bench_it.py::test_forward[{index}]" for index in range(50)]
NOISE = 0.02
Compared = Callable[[object], tuple[int, str, str]]


def _run(
    rng: np.random.Generator, slower: dict[str, float] | None = None, clock: str = "process_time"
) -> dict[str, Any]:
    """The JSON that pytest-benchmark would write: each name at its own time, times noise."""
    entries = []
    for place, name in enumerate(NAMES):
        seconds = 1e-5 * (1 + place) * (slower or {}).get(name, 1.0) * math.exp(NOISE * rng.standard_normal())
        stats = {"median": seconds, "min": 0.9 * seconds}
        entries.append({"fullname": name, "stats": stats, "options": {"timer": clock}})
    return {"machine_info": {"kind": KIND, "versions": VERSIONS}, "benchmarks": entries}


def _written(folder: Path, name: str, content: object) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)  # one run in twenty would have a false alarm somewhere in its fifty benchmarks


@pytest.fixture
def baseline(tmp_path: Path, rng: np.random.Generator) -> Path:
    path = tmp_path / "baseline.json"
    joined([read_timings(_written(tmp_path, f"run{index}", _run(rng))) for index in range(5)]).store(path)
    return path


@pytest.fixture
def compared(baseline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Compared:
    """Exit status, output and errors of a comparison of the baseline with a new run."""

    def run(new: object) -> tuple[int, str, str]:
        status = main([str(baseline), str(_written(tmp_path, "new", new))])
        return status, *capsys.readouterr()

    return run


def test_a_baseline_is_read_as_it_was_written(baseline: Path, tmp_path: Path) -> None:
    runs = [read_timings(tmp_path / f"run{index}.json") for index in range(5)]
    assert read_timings(baseline) == joined(runs)
    assert len(read_timings(baseline).benchmarks[NAMES[0]]["median"]) == 5


def test_a_slowdown_is_named_and_fails(compared: Compared, rng: np.random.Generator) -> None:
    status, out, _ = compared(_run(rng, {NAMES[7]: 2.0}))
    (regressed,) = [line for line in out.splitlines() if "REGRESSED" in line]
    assert status == 1
    assert NAMES[7] in regressed


def test_a_speed_up_passes(compared: Compared, rng: np.random.Generator) -> None:
    assert compared(_run(rng, dict.fromkeys(NAMES, 0.5)))[0] == 0


def test_a_slower_median_alone_is_load_on_the_machine(baseline: Path) -> None:
    old = read_timings(baseline)
    loaded = {
        name: {"median": [3 * runs["median"][0]], "min": runs["min"][:1]} for name, runs in old.benchmarks.items()
    }
    assert not any(row.regressed for row in compare(old, Timings(old.machine, VERSIONS, loaded)))


@pytest.mark.parametrize(("runs", "new_runs"), [(5, 1), (5, 5), (8, 1), (12, 1)])
def test_noise_passes_the_bound_once_in_a_thousand_times(runs: int, new_runs: int, rng: np.random.Generator) -> None:
    trials = 10_000
    times = np.exp(0.1 * rng.standard_normal((trials, runs + new_runs)))
    passed = sum(ratio > bound for ratio, bound in (ratio_and_bound(row[:runs], row[runs:]) for row in times))
    assert 1 <= passed <= 35  # 10 expected; a bound that nothing passes would find nothing, either


def test_the_bound_follows_the_noise() -> None:
    runs = (-1.0, 0.0, 1.0, 0.5, -0.5)
    bounds = [ratio_and_bound([math.exp(noise * run) for run in runs], [1.0])[1] for noise in (0, 0.01, 0.1)]
    assert bounds[0] == 1.02 < bounds[1] < bounds[2]


def test_missing_and_new_benchmarks_are_listed(compared: Compared, rng: np.random.Generator) -> None:
    run = _run(rng)
    run["benchmarks"][0]["fullname"] = "another"
    status, out, _ = compared(run)
    assert status == 0
    assert {f"missing in the new timings: {NAMES[0]}", "not in the baseline: another"} <= set(out.splitlines())


def test_another_kind_of_machine_or_clock_is_refused_in_one_line(compared: Compared, rng: np.random.Generator) -> None:
    other, clock = _run(rng), _run(rng, clock="perf_counter")
    other["machine_info"]["kind"] = KIND | {"threads": 8}
    for run, words in ((other, ("threads 8", "threads 1")), (clock, ("clock perf_counter",))):
        status, out, error = compared(run)
        assert (status, out, error.count("\n")) == (2, "", 1)
        assert all(word in error for word in words)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "crma-bench-baseline"}', '{"benchmarks": 3}'])
def test_a_damaged_or_missing_file_is_refused(
    content: str, baseline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "damaged.json"
    path.write_text(content)
    assert main([str(baseline), str(path)]) == 2
    assert main([str(path), str(baseline)]) == 2
    assert main([str(baseline), str(tmp_path / "no.json")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_single_run_is_no_baseline(tmp_path: Path, rng: np.random.Generator) -> None:
    run = read_timings(_written(tmp_path, "run", _run(rng)))
    with pytest.raises(ConfigError, match="1 runs"):
        compare(run, run)


def test_runs_of_different_benchmarks_are_no_baseline(tmp_path: Path, rng: np.random.Generator) -> None:
    run, shorter = _run(rng), _run(rng)
    shorter["benchmarks"].pop()
    with pytest.raises(ConfigError, match="1 benchmarks"):
        joined([read_timings(_written(tmp_path, "a", run)), read_timings(_written(tmp_path, "b", shorter))])

"""bench.compare: finds a slowdown, is silent on noise, and refuses what cannot be compared."""

from __future__ import annotations

import json
import math
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
    runs = [read_timings(_written(tmp_path, f"run{index}", _run(rng))) for index in range(5)]
    path = tmp_path / "baseline.json"
    path.write_bytes(joined(runs).encoded())
    return path


def test_a_baseline_is_read_as_it_was_written(baseline: Path, tmp_path: Path) -> None:
    runs = [read_timings(tmp_path / f"run{index}.json") for index in range(5)]
    assert read_timings(baseline) == joined(runs)
    assert len(read_timings(baseline).medians[NAMES[0]]) == 5


def test_a_slowdown_is_named_and_fails(
    baseline: Path, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    new = _written(tmp_path, "new", _run(rng, {NAMES[7]: 2.0}))
    assert main([str(baseline), str(new)]) == 1
    regressed = [line for line in capsys.readouterr().out.splitlines() if "REGRESSED" in line]
    assert len(regressed) == 1
    assert NAMES[7] in regressed[0]


def test_a_speed_up_passes(baseline: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    assert main([str(baseline), str(_written(tmp_path, "new", _run(rng, dict.fromkeys(NAMES, 0.5))))]) == 0


def test_a_slower_median_alone_is_load_on_the_machine(baseline: Path) -> None:
    old = read_timings(baseline)
    loaded = {name: [3 * values[0]] for name, values in old.medians.items()}
    new = Timings(old.machine, VERSIONS, loaded, {name: values[:1] for name, values in old.minima.items()})
    assert not any(row.regressed for row in compare(old, new))


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


def test_missing_and_new_benchmarks_are_listed(
    baseline: Path, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run(rng)
    run["benchmarks"][0]["fullname"] = "another"
    assert main([str(baseline), str(_written(tmp_path, "new", run))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"missing in the new timings: {NAMES[0]}" in lines
    assert "not in the baseline: another" in lines


def test_another_kind_of_machine_is_refused_in_one_line(
    baseline: Path, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run(rng)
    run["machine_info"]["kind"] = KIND | {"threads": 8}
    assert main([str(baseline), str(_written(tmp_path, "new", run))]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "threads 8" in captured.err
    assert "threads 1" in captured.err


def test_another_clock_is_refused(
    baseline: Path, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    new = _written(tmp_path, "new", _run(rng, clock="perf_counter"))
    assert main([str(baseline), str(new)]) == 2
    assert "clock perf_counter" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "crma-bench-baseline"}', '{"benchmarks": 3}'])
def test_a_damaged_file_is_refused(
    content: str, baseline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "damaged.json"
    path.write_text(content)
    assert main([str(baseline), str(path)]) == 2
    assert main([str(path), str(baseline)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_missing_file_is_refused(baseline: Path, tmp_path: Path) -> None:
    assert main([str(baseline), str(tmp_path / "no.json")]) == 2


def test_a_single_run_is_no_baseline(tmp_path: Path, rng: np.random.Generator) -> None:
    run = read_timings(_written(tmp_path, "run", _run(rng)))
    with pytest.raises(ConfigError, match="1 runs"):
        compare(run, run)


def test_runs_of_different_benchmarks_are_no_baseline(tmp_path: Path, rng: np.random.Generator) -> None:
    run, shorter = _run(rng), _run(rng)
    shorter["benchmarks"].pop()
    with pytest.raises(ConfigError, match="1 benchmarks"):
        joined([read_timings(_written(tmp_path, "a", run)), read_timings(_written(tmp_path, "b", shorter))])

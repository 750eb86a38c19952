"""Files of timings: what ``pytest bench/ --benchmark-json`` writes, and baselines of several runs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backends.files import read_json
from reference.errors import ConfigError

FORMAT = "crma-bench-baseline"


@dataclass(frozen=True)
class Timings:
    """Seconds of every benchmark: ``medians[name]`` and ``minima[name]`` hold one value per run."""

    machine: dict[str, Any]
    versions: dict[str, str]
    medians: dict[str, list[float]] = field(default_factory=dict)
    minima: dict[str, list[float]] = field(default_factory=dict)

    def encoded(self) -> bytes:
        """As the JSON of a baseline."""
        runs = {name: {"median": self.medians[name], "min": self.minima[name]} for name in sorted(self.medians)}
        content = {"format": FORMAT, "machine": self.machine, "versions": self.versions, "benchmarks": runs}
        return json.dumps(content, indent=1).encode() + b"\n"


def read_timings(path: Path) -> Timings:
    """A baseline, or one run of pytest-benchmark as ``bench/conftest.py`` lets it be written. Raises: ConfigError."""
    try:
        content = read_json(path)
        return _baseline(content) if content.get("format") == FORMAT else _single_run(content)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}") from None


def joined(runs: list[Timings]) -> Timings:
    """Several runs of one machine as a baseline. Raises: ConfigError if a benchmark is not in every run."""
    first = runs[0]
    names = set(first.medians)
    for run in runs[1:]:
        if run.machine != first.machine or set(run.medians) != names:
            raise ConfigError(
                "runs",
                got=f"{len(names ^ set(run.medians))} benchmarks that are not in every run, or different machines",
                allowed="runs of the same benchmarks on one machine",
                remedy="run them again; a benchmark that fails now and then has to be mended first",
            )
    medians = {name: [value for run in runs for value in run.medians[name]] for name in names}
    minima = {name: [value for run in runs for value in run.minima[name]] for name in names}
    return Timings(first.machine, first.versions, medians, minima)


def _baseline(content: dict[str, Any]) -> Timings:
    runs = content["benchmarks"]
    medians, minima = ({name: _seconds(entry[key]) for name, entry in runs.items()} for key in ("median", "min"))
    return Timings(content["machine"], content["versions"], medians, minima)


def _single_run(content: dict[str, Any]) -> Timings:
    info = content["machine_info"]
    clocks = {entry["options"]["timer"] for entry in content["benchmarks"]}
    stats = {entry["fullname"]: entry["stats"] for entry in content["benchmarks"]}
    medians, minima = ({name: _seconds([entry[key]]) for name, entry in stats.items()} for key in ("median", "min"))
    return Timings(info["kind"] | {"clock": ", ".join(sorted(clocks))}, info["versions"], medians, minima)


def _seconds(values: list[float]) -> list[float]:
    if not values or not all(isinstance(value, (int, float)) and value > 0 for value in values):
        raise ValueError(f"times {values}")
    return list(values)


def _unreadable(path: Path, got: str) -> ConfigError:
    return ConfigError(
        f"timings {path}",
        got=got,
        allowed="a baseline of bench.baseline, or the JSON of pytest bench/ --benchmark-json",
        remedy="write it again: python -m bench.baseline --runs 5 --out FILE.json",
    )

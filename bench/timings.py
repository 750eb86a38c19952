"""Files of timings: what ``pytest bench/ --benchmark-json`` writes, and baselines of several runs."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from backends.files import read_json
from bench import program
from reference.errors import ConfigError

FORMAT = "crma-bench-baseline"
Runs = dict[str, list[float]]


@dataclass(frozen=True)
class Timings:
    """Seconds of every benchmark by name: its "median" and its "min", each with one value per run."""

    machine: dict[str, Any]
    versions: dict[str, str]
    benchmarks: dict[str, Runs]

    def store(self, path: Path) -> None:
        """As a baseline. Raises: DiskSpaceError, OSError."""
        ordered = dict(sorted(self.benchmarks.items()))
        program.store(path, {"format": FORMAT, **asdict(self), "benchmarks": ordered})


def read_timings(path: Path) -> Timings:
    """A baseline, or one run of pytest-benchmark as ``bench/conftest.py`` lets it be written. Raises: ConfigError."""
    try:
        content = read_json(path)
        timings = _baseline(content) if content.get("format") == FORMAT else _single_run(content)
        for runs in timings.benchmarks.values():
            for times in (runs["median"], runs["min"]):
                if not times or not all(isinstance(value, (int, float)) and value > 0 for value in times):
                    raise ValueError(f"times {times}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"timings {path}",
            got=f"{type(error).__name__}: {error}",
            allowed="a baseline of bench.baseline, or the JSON of pytest bench/ --benchmark-json",
            remedy="write it again: python -m bench.baseline --runs 5 --out FILE.json",
        ) from None
    return timings


def joined(runs: list[Timings]) -> Timings:
    """Several runs of one machine as a baseline. Raises: ConfigError if a benchmark is not in every run."""
    first = runs[0]
    names = set(first.benchmarks)
    for run in runs[1:]:
        if run.machine != first.machine or set(run.benchmarks) != names:
            raise ConfigError(
                "runs",
                got=f"{len(names ^ set(run.benchmarks))} benchmarks that are not in every run, or different machines",
                allowed="runs of the same benchmarks on one machine",
                remedy="run them again; a benchmark that fails now and then has to be mended first",
            )
    both = {
        name: {key: [time for run in runs for time in run.benchmarks[name][key]] for key in ("median", "min")}
        for name in names
    }
    return Timings(first.machine, first.versions, both)


def _baseline(content: dict[str, Any]) -> Timings:
    return Timings(content["machine"], content["versions"], content["benchmarks"])


def _single_run(content: dict[str, Any]) -> Timings:
    info = content["machine_info"]
    clocks = {entry["options"]["timer"] for entry in content["benchmarks"]}
    stats = {entry["fullname"]: entry["stats"] for entry in content["benchmarks"]}
    runs = {name: {key: [entry[key]] for key in ("median", "min")} for name, entry in stats.items()}
    return Timings(info["kind"] | {"clock": ", ".join(sorted(clocks))}, info["versions"], runs)

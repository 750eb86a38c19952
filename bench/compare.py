"""Is a run slower than the baseline of the same kind of machine, past what repeated runs of the baseline differ by?

    python -m bench.compare BASELINE.json NEW.json

NEW is the JSON of ``pytest bench/ --benchmark-json=NEW.json`` or of ``bench.baseline``. Exit status 0: no regression;
1: at least one, see the table; 2: the files cannot be compared.

Judged is the fastest round of each benchmark: load on the machine lifts the median, slower code lifts both. With ``s``
the standard deviation of the logarithms of the minima of R baseline runs, the geometric mean of k new ones is a
regression where it is more than ``exp(t s sqrt(1/R + 1/k))`` times the baseline's, t being Student's quantile of R - 1
degrees that independent normal noise exceeds once in a thousand times; less than 2% is none in any case. Load that came
after the baseline is not in its spread: measure both on an idle machine, and a suspect again.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy import stats

from backends.files import printable
from bench import program
from bench.timings import Runs, Timings, read_timings
from reference.errors import ConfigError

LEAST_RUNS = 5
LEAST_BOUND = 1.02


@dataclass(frozen=True)
class Row:
    """One benchmark: seconds of the fastest rounds, new over baseline, the largest ratio that noise explains."""

    name: str
    baseline_seconds: float
    new_seconds: float
    ratio: float
    allowed: float
    median_ratio: float

    @property
    def regressed(self) -> bool:
        return self.ratio > self.allowed


def compare(baseline: Timings, new: Timings) -> list[Row]:
    """The benchmarks that both have, the worst ratio first. Raises: ConfigError if they cannot be compared."""
    if baseline.machine != new.machine:
        raise ConfigError(
            "machine of the new timings",
            got=_text(new.machine),
            allowed=f"the baseline's: {_text(baseline.machine)}",
            remedy="compare with a baseline of this machine, made by python -m bench.baseline --runs 5",
        )
    common = sorted(baseline.benchmarks.keys() & new.benchmarks.keys())
    fewest = min((len(baseline.benchmarks[name]["min"]) for name in common), default=0)
    if fewest < LEAST_RUNS:
        raise ConfigError(
            "baseline",
            got=f"{fewest} runs" if common else "no benchmark that the new timings have",
            allowed=f"at least {LEAST_RUNS} runs of the same benchmarks",
            remedy="python -m bench.baseline --runs 5 --out BASELINE.json",
        )
    rows = [_row(name, baseline.benchmarks[name], new.benchmarks[name]) for name in common]
    return sorted(rows, key=lambda row: -row.ratio / row.allowed)


def _row(name: str, old: Runs, new: Runs) -> Row:
    medians = _mean(new["median"]) / _mean(old["median"])
    return Row(name, _mean(old["min"]), _mean(new["min"]), *ratio_and_bound(old["min"], new["min"]), medians)


def ratio_and_bound(old: Sequence[float], new: Sequence[float]) -> tuple[float, float]:
    """Geometric mean of ``new`` over that of ``old``, and the largest such ratio that noise explains."""
    quantile = float(stats.t.isf(0.001, len(old) - 1))
    bound = math.exp(quantile * statistics.stdev(map(math.log, old)) * math.sqrt(1 / len(old) + 1 / len(new)))
    return _mean(new) / _mean(old), max(bound, LEAST_BOUND)


def _mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def table(rows: Sequence[Row]) -> str:
    """One line per benchmark."""
    lines = [["benchmark", "baseline", "new", "ratio", "allowed", "of medians", ""]]
    for row in rows:
        times = [f"{1e6 * seconds:.1f} us" for seconds in (row.baseline_seconds, row.new_seconds)]
        ratios = [f"{value:.3f}" for value in (row.ratio, row.allowed, row.median_ratio)]
        lines.append([printable(row.name), *times, *ratios, "REGRESSED" if row.regressed else ""])
    return program.aligned(lines)


def _text(values: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """0: no regression, 1: at least one, 2: not comparable."""
    parser = program.parser("compare", __doc__, stores=False)
    parser.add_argument("baseline", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args(arguments)
    return program.run("compare", lambda: _compared(read_timings(options.baseline), read_timings(options.new)))


def _compared(baseline: Timings, new: Timings) -> int:
    rows = compare(baseline, new)
    print(table(rows))
    for title, one, other in (("missing in the new timings", baseline, new), ("not in the baseline", new, baseline)):
        for name in sorted(one.benchmarks.keys() - other.benchmarks.keys()):
            print(f"{title}: {printable(name)}")
    if baseline.versions != new.versions:
        print(printable(f"versions differ: {_text({**baseline.versions})} then, {_text({**new.versions})} now"))
    regressed = sum(row.regressed for row in rows)
    print(f"{len(rows)} compared, {regressed} slower than noise explains")
    return 1 if regressed else 0


if __name__ == "__main__":
    raise SystemExit(main())

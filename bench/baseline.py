"""Run the benchmarks of this project's own code several times, and store every run's median and minimum.

    python -m bench.baseline --runs 5 --out bench/results/baseline-MACHINE.json
    python -m bench.baseline --runs 1 --out NEW.json     # to compare with it: python -m bench.compare
    python -m bench.baseline --runs 5 --device cuda      # on a GPU; the name is made from the machine

The spread over runs is the noise that ``bench.compare`` allows for. On a CPU the clock is the processor time of the
process. Arguments after ``--`` go to pytest in place of the selection here, which leaves out other packages and what
takes long to compile.
"""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import program
from bench.compare import LEAST_RUNS, ratio_and_bound
from bench.machine import require_device, slug
from bench.timings import Timings, joined, read_timings
from reference.errors import BackendError

FOLDER = Path(__file__).parent
SELECTED = ["-k", "crma and not compiled or tiny", "--benchmark-max-time=0.5"]
CLOCK = "--benchmark-timer=time.process_time"  # without the time in which another program has the processor
NOISY = 1.5


def one_run(device: str, arguments: Sequence[str]) -> Timings:
    """The timings of one pytest session in a process of its own. Raises: BackendError with the end of its output."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.json"
        command = [sys.executable, "-m", "pytest", str(FOLDER), "-q", f"--bench-device={device}", CLOCK]
        command += [f"--benchmark-json={path}", *arguments]
        done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not path.exists():
            raise BackendError(
                "pytest bench/",
                got=f"exit status {done.returncode}: {(done.stdout + done.stderr).strip()[-500:]}",
                allowed="exit status 0 and at least one benchmark",
                remedy=f"run it by hand: pytest bench/ {' '.join(arguments)}",
            )
        return read_timings(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if the timings were written, 2 if not."""
    parser = program.parser("baseline", __doc__, stores=False)
    parser.add_argument(
        "--runs", type=int, default=5, help=f"a baseline has {LEAST_RUNS} or more (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="default: bench/results/baseline-MACHINE.json")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, after --")
    options = parser.parse_args(arguments)
    if options.runs < 1 or (options.runs < LEAST_RUNS and options.out is None):
        parser.error(f"--runs must be at least 1, and {LEAST_RUNS} without --out: fewer say nothing of the noise")

    def measured() -> None:
        device = require_device(options.device, "python -m bench.baseline --device cuda")
        runs = []
        for index in range(options.runs):
            runs.append(one_run(device, options.pytest or SELECTED))
            print(f"run {index + 1} of {options.runs}: {len(runs[-1].benchmarks)} benchmarks", flush=True)
        timings = joined(runs)
        out = options.out or FOLDER / "results" / f"baseline-{slug(timings.machine)}.json"
        timings.store(out)
        print(f"wrote {out.name}")
        if options.runs >= LEAST_RUNS:
            _print_noise(timings)

    return program.run("baseline", measured)


def _print_noise(baseline: Timings) -> None:
    bounds = {name: ratio_and_bound(runs["min"], runs["min"][:1])[1] for name, runs in baseline.benchmarks.items()}
    print(f"noise explains a factor of {statistics.median(bounds.values()):.3f} in the median of the benchmarks")
    for name, bound in sorted(bounds.items()):
        if bound > NOISY:
            print(f"too noisy to find less than a factor of {bound:.2f}: {name}; measure on an idle machine")


if __name__ == "__main__":
    raise SystemExit(main())

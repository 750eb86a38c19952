"""What a run of the conformance suite costs: seconds, processor seconds, peak memory, shapes.

    python -m bench.conformance_suite --out bench/results/conformance_suite.json
    python -m bench.conformance_suite --backends "node conformance/examples/node_port.js" --profiles quick
    python -m bench.conformance_suite --backends torch-triton --processes 1 --out FILE.json

Each run is ``python -m conformance`` in a process of its own, with one thread. Counted is what the system says of that
process and of all that it waited for, the tests' process and a port's program among them; the peak is that of the
largest one. The number of shapes is the suite's own, of its last lines: a port that compiles has a program for each.
``--out`` keeps the runs of an existing file that are not repeated, if they are of this machine and these versions. What
follows ``--`` goes to pytest.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backends.files import printable
from bench import program
from bench.machine import processor, versions
from reference.errors import BackendError, ConfigError

BACKENDS = ("reference", "torch-cpu", "jax-cpu")
PROFILES = {"quick": ["--quick"], "full": []}
KEY = ("backend", "profile", "processes", "arguments")
_COUNTS = re.compile(r"(\d+) (passed|failed|skipped|errors?|deselected|xfailed|xpassed)\b")
_CLOSING = re.compile(
    r"^=*\s*((?:\d+ [a-z]+, )*\d+ [a-z]+) in [\d.]+s"
)  # "810 passed, 30 skipped in 102.94s (0:01:42)"
_SHAPES = re.compile(r"\bshapes: ([\d,]+) distinct")
_FAILURES = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
_BACKEND = re.compile(r"^backend .*, against spec .*$", re.MULTILINE)


def read_output(text: str) -> dict[str, Any]:
    """What a run says of itself: the line of its backend, the counts, the tests that failed, and shapes, None where it
    is silent.

    Raises: ConfigError if there is no closing line of pytest's, without which a run proves nothing (CONF-4).
    """
    closing = [found[1] for line in text.splitlines() if (found := _CLOSING.match(line))]
    if not closing:
        raise ConfigError(
            "conformance run",
            got=f"no closing line; its last: {(text.strip().splitlines() or ['none'])[-1][-300:]}",
            allowed="pytest's closing line, such as '840 passed in 60.00s'",
            remedy="run the suite by hand",
        )
    counts = {name.removesuffix("s"): int(number) for number, name in _COUNTS.findall(closing[-1])}
    header = _BACKEND.search(text)
    return {
        "header": header[0] if header else None,
        "passed": counts.get("passed", 0),
        "skipped": counts.get("skipped", 0),
        "failed": counts.get("failed", 0) + counts.get("error", 0) + counts.get("xpassed", 0),
        "gaps": counts.get("xfailed", 0),
        "failures": _FAILURES.findall(text),
        "shapes": int(shapes[1].replace(",", "")) if (shapes := _SHAPES.search(text)) else None,
    }


def measured(backend: str, profile: str, processes: int, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """One run. Raises: BackendError if its status is neither 0 nor 1, ConfigError as :func:`read_output`."""
    command = [sys.executable, "-m", "conformance", "-q", "-p", "no:cacheprovider", f"--backend={backend}"]
    command += [*PROFILES[profile], "-n", str(processes if processes > 1 else 0), *arguments]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        start = time.perf_counter()
        run = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        # Unlike RUSAGE_CHILDREN this is of the one child, with what it has waited for, and not of all runs so far.
        _, status, usage = os.wait4(run.pid, 0)
        wall = time.perf_counter() - start
        run.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if run.returncode not in (0, 1):
        raise BackendError(
            f"conformance run of {backend}",
            got=f"exit status {run.returncode}: {(text.strip().splitlines() or ['no output'])[-1][-300:]}",
            allowed="exit status 0 or 1",
            remedy="run it by hand: python " + " ".join(command[1:]),
        )
    return {
        "backend": backend,
        "profile": profile,
        "processes": processes,
        "arguments": list(arguments),
        "wall_seconds": round(wall, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        **read_output(text),
    }


def kept_runs(path: Path, here: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of an existing file. Raises: ConfigError if it is another machine's, or no such file."""
    runs = program.kept(path, here, "runs")
    if runs is None:
        return []
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        raise program.other_file(path, "runs in a form that no run writes")
    return [run for run in runs if all(name in run for name in KEY)]


def where() -> dict[str, Any]:
    """The machine, and the versions of what decides the cost. Nothing of it is imported: on Linux a child's peak begins
    with the memory of the process that started it.
    """
    machine = {"device": "cpu", "processor": processor(), "threads": 1, "cores": os.cpu_count()}
    decide = versions("hypothesis", "jax", "jaxlib", "numpy", "pytest", "pytest-xdist", "torch", "triton")
    return {"machine": machine, "versions": decide}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure run after run; the file is written anew after each, so that nothing measured is lost. 0; 1 if a test
    failed; 2 for a mistake.
    """
    options = _parser().parse_args(arguments)
    return program.run("conformance_suite", lambda: _measure(options))


def _measure(options: argparse.Namespace) -> int:
    content = where()
    runs = kept_runs(options.out, content) if options.out else []
    failed = 0
    for case in itertools.product(options.backends, options.profiles, options.processes):
        run = measured(*case, options.pytest_arguments)
        failed += run["failed"]
        runs = [other for other in runs if any(other[name] != run[name] for name in KEY)] + [run]
        print(printable(json.dumps(run, ensure_ascii=False)), flush=True)
        if options.out:
            program.store(options.out, content | {"runs": runs})
    return int(failed > 0)


def _processes(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _parser() -> argparse.ArgumentParser:
    parser = program.parser("conformance_suite", __doc__)
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), metavar="NAME", help="as for --backend")
    parser.add_argument("--profiles", nargs="+", default=list(PROFILES), choices=PROFILES)
    parser.add_argument("--processes", nargs="+", type=_processes, default=[2], metavar="N", help="of tests")
    parser.add_argument("pytest_arguments", nargs="*", metavar="-- ARGUMENT", help="more arguments for pytest")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""``python -m conformance.selftest.mutant_runs [FILE.json]``: which wrong ports each profile of the suite catches.

Several mutants share a process, since most of its time is spent on starting; each is judged by its own tests.
"""

import json
import re
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from functools import cache
from pathlib import Path
from typing import NamedTuple

from conformance.selftest.mutants import MUTANTS
from conformance.selftest.mutants.base import Mutant
from conformance.selftest.programs import PACKAGE, run

TESTS = {path.stem: path for path in sorted(PACKAGE.glob("test_*.py"))}
BATCH = 12
#: a result that was compared and found wrong, or a state file that the suite's own reader refuses; anything else, such
#: as a crash of the port, would prove nothing
COMPARED = re.compile(
    r"(AssertionError|assert |.*ToleranceError|.*PortResultError|reference\.errors\.StateFileError: state file: )"
)


class Run(NamedTuple):
    """Exit code, what was printed, and for each (backend, file's stem, test's name) the messages of its failures."""

    code: int
    printed: str
    outcomes: dict[tuple[str, str, str], list[str]]

    def of(self, mutant: Mutant, test: str) -> list[str] | None:
        """The messages of a test on a mutant; none if it was not run."""
        return self.outcomes.get((backend_name(mutant), *where(test)))


def run_suite(folder: Path, backends: list[str], profile: str, *options: str) -> Run:
    """Only conformance/test_*.py, or what of them is among ``options``. Skipped tests have no outcome."""
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    command = ["-m", "conformance", "--profile", profile, "--tb=short", "-q", "-p", "no:cacheprovider"]
    command += [f"--junitxml={report}", *(f"--backend={name}" for name in backends), *options]
    done = run(folder, *command, timeout=900, OMP_NUM_THREADS="1")
    outcomes: dict[tuple[str, str, str], list[str]] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase") if report.exists() else ():
        test, _, parameters = case.get("name", "").partition("[")
        backend = next((name for name in backends if re.search(rf"{re.escape(name)}[\]-]", parameters)), "")
        if case.find("skipped") is None:
            messages = outcomes.setdefault((backend, case.get("classname", "").rpartition(".")[2], test), [])
            messages += [bad.get("message", "") for kind in ("failure", "error") for bad in case.findall(kind)]
    return Run(done.returncode, done.stdout + done.stderr, outcomes)


@cache
def where(test: str) -> tuple[str, str]:
    """File and name of a test; one whose name occurs in several files is given as ``stem::name``."""
    stem, _, name = test.rpartition("::")
    found = [(s, name) for s, path in TESTS.items() if s in (stem or s) and f"\ndef {name}(" in path.read_text("utf-8")]
    assert len(found) == 1, f"{test}: {found or 'in no file'}"
    return found[0]


def backend_name(mutant: Mutant) -> str:
    return f"conformance.selftest.mutants:{mutant.name}"


def try_mutants(folder: Path, batch: tuple[Mutant, ...], profile: str) -> dict[str, Run]:
    """One process for the batch; if it dies, one for each, so that one mutant cannot hide another.

    In the full profile only the tests that are to catch it, on the layouts where it is wrong: all of them are in it.
    """
    full = profile == "full"
    wanted = {m: [where(test) for test in (*m.caught_by, *(() if full else m.passes))] for m in batch}
    nodes = {f"{TESTS[stem]}::{name}": None for tests in wanted.values() for stem, name in tests}
    selected = " or ".join(
        f"(mutants:{mutant.name} and ({' or '.join(f'({stem}.py and {name}[)' for stem, name in tests)})"
        f"{f' and {mutant.layouts}' if full and mutant.layouts else ''})"
        for mutant, tests in wanted.items()
    )
    options = [*nodes, "-k", selected, "-p", "conformance.selftest.no_shrinking"]
    run = run_suite(folder, [backend_name(mutant) for mutant in batch], profile, *options)
    if run.code not in (0, 1, 5) and len(batch) > 1:
        return {name: one for mutant in batch for name, one in try_mutants(folder, (mutant,), profile).items()}
    return {mutant.name: run for mutant in batch}


def try_all(folder: Path, mutants: tuple[Mutant, ...], profile: str) -> dict[str, Run]:
    """In batches of mutants that are tried by the same tests, as far as they lie together."""
    runs: dict[str, Run] = {}
    for begin in range(0, len(mutants), BATCH):
        runs |= try_mutants(folder, mutants[begin : begin + BATCH], profile)
    return runs


def missed(mutants: tuple[Mutant, ...], runs: dict[str, Run]) -> tuple[Mutant, ...]:
    """Those that one of their tests did not notice."""
    return tuple(m for m in mutants if not all(runs[m.name].of(m, test) for test in m.caught_by))


def assert_caught(mutant: Mutant, run: Run) -> None:
    """By each of its tests, which compared and found a difference."""
    for test in mutant.caught_by:
        messages = run.of(mutant, test)
        assert messages is not None, f"{test} was not run:\n{run.printed}"
        assert messages, f"{test} did not notice"
        assert all(COMPARED.match(message) for message in messages), (test, messages)


def main(arguments: list[str]) -> int:
    """Every mutant in both profiles; status 1 if the full one misses any."""
    with tempfile.TemporaryDirectory() as folder:
        by_profile = {name: missed(MUTANTS, try_all(Path(folder), MUTANTS, name)) for name in ("quick", "full")}
    found = {"mutants": len(MUTANTS)} | {
        f"missed by {name}": sorted(mutant.name for mutant in left) for name, left in by_profile.items()
    }
    text = json.dumps(found, indent=1)
    print(text)
    for path in arguments:
        Path(path).write_text(text + "\n", encoding="utf-8")
    return 1 if by_profile["full"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

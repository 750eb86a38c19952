"""The suite is run against ports that are wrong: it must say so, by the tests made for it, and by a comparison.

Several mutants share a process, since most of its time is spent on starting; each is judged by its own tests.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import pytest

from conformance.selftest import mutants
from conformance.selftest.mutants import MUTANTS
from conformance.selftest.mutants.base import Mutant
from conformance.selftest.port import NumpyPort

ROOT = Path(__file__).resolve().parents[2]
TESTS = {path.stem: path for path in sorted((ROOT / "conformance").glob("test_*.py"))}
BATCH = 10
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


def run_suite(folder: Path, backends: list[str], *options: str) -> Run:
    """Only conformance/test_*.py, or what of them is among ``options``. Skipped tests have no outcome."""
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "conformance", "--quick", "--tb=short", "-q", "-p", "no:cacheprovider"]
    command += [f"--junitxml={report}", *(f"--backend={name}" for name in backends), *options]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    outcomes: dict[tuple[str, str, str], list[str]] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase") if report.exists() else ():
        test, _, parameters = case.get("name", "").partition("[")
        backend = next((name for name in backends if re.search(rf"{re.escape(name)}[\]-]", parameters)), "")
        if case.find("skipped") is None:
            messages = outcomes.setdefault((backend, case.get("classname", "").rpartition(".")[2], test), [])
            messages += [bad.get("message", "") for kind in ("failure", "error") for bad in case.findall(kind)]
    return Run(done.returncode, done.stdout + done.stderr, outcomes)


def located(test: str) -> list[tuple[str, str]]:
    """File and name of a test; one whose name occurs in several files is given as ``stem::name``."""
    stem, _, name = test.rpartition("::")
    return [(s, name) for s, path in TESTS.items() if s in (stem or s) and f"\ndef {name}(" in path.read_text("utf-8")]


def backend_name(mutant: Mutant) -> str:
    return f"conformance.selftest.mutants:{mutant.name}"


def try_mutants(folder: Path, batch: tuple[Mutant, ...]) -> dict[str, Run]:
    """One process for the batch; if it dies, one for each, so that one mutant cannot hide another."""
    wanted = {
        mutant: [found for test in (*mutant.caught_by, *mutant.passes) for found in located(test)] for mutant in batch
    }
    nodes = {f"{TESTS[stem]}::{name}": None for tests in wanted.values() for stem, name in tests}
    selected = " or ".join(
        f"(mutants:{mutant.name} and ({' or '.join(f'({stem}.py and {name})' for stem, name in tests)}))"
        for mutant, tests in wanted.items()
    )
    run = run_suite(folder, [backend_name(mutant) for mutant in batch], *nodes, "-k", selected)
    if run.code not in (0, 1) and len(batch) > 1:
        return {name: one for mutant in batch for name, one in try_mutants(folder, (mutant,)).items()}
    return {mutant.name: run for mutant in batch}


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """Name of a mutant -> the run that it was in."""
    folder = tmp_path_factory.mktemp("mutants")

    @cache
    def batch_of(index: int) -> dict[str, Run]:
        return try_mutants(folder, MUTANTS[index * BATCH : (index + 1) * BATCH])

    return lambda mutant: batch_of(MUTANTS.index(mutant) // BATCH)[mutant.name]


def outcome(run: Run, mutant: Mutant, test: str) -> list[str]:
    found = located(test)
    assert len(found) == 1, f"{test}: {found or 'in no file'}"
    key = (backend_name(mutant), *found[0])
    assert key in run.outcomes, f"{key} was not run:\n{run.printed}"
    return run.outcomes[key]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant, tried):
    """By each of the named tests, which compares and finds a difference."""
    for test in mutant.caught_by:
        messages = outcome(tried(mutant), mutant, test)
        assert messages, f"{test} did not notice"
        assert all(COMPARED.match(message) for message in messages), (test, messages)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_wrong_in_one_thing_only(mutant, tried):
    """It passes the tests of other subjects: it is a port with a fault, not a ruin that any test would notice."""
    assert {test: outcome(tried(mutant), mutant, test) for test in mutant.passes} == {
        test: [] for test in mutant.passes
    }


def test_every_mutant_is_tried():
    """Whatever is derived from the port in these modules is in the list, and no name is the start of another one."""
    names = [mutant.name for mutant in MUTANTS]
    assert not [(a, b) for a in names for b in names if a is not b and b.startswith(a)]
    listed = {m.factory.func if isinstance(m.factory, partial) else m.factory for m in MUTANTS}
    bases = {base for port in listed if inspect.isclass(port) for base in port.__mro__[1:]}
    assert _subclasses(NumpyPort) - bases == listed - bases
    assert all(getattr(mutants, mutant.name) is mutant.factory for mutant in MUTANTS)


def _subclasses(port: type[NumpyPort]) -> set[type[NumpyPort]]:
    return {each for direct in port.__subclasses__() for each in {direct, *_subclasses(direct)}}


@pytest.mark.parametrize("factory", ["port:make_port", "mutants.state_file:OwnReader", "mutants.state_writer:Writer"])
def test_correct_port_passes_everything(factory, tmp_path):
    """As do the classes that mutants are derived from."""
    files = () if factory.startswith("port") else (str(TESTS["test_state_file"]), str(TESTS["test_golden_vectors"]))
    run = run_suite(tmp_path, [f"conformance.selftest.{factory}"], *files)
    assert run.code == 0, run.printed
    assert not any(run.outcomes.values())
    assert re.search(r"^\d\d+ passed", run.printed.splitlines()[-1]), run.printed
    assert not list(tmp_path.glob(".hypothesis*")), "the suite left a folder behind"

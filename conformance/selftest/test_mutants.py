"""The suite is run, in a process of its own, against ports that are wrong: it must say so, by the tests made for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from conformance.selftest.mutants import MUTANTS, PORTS

ROOT = Path(__file__).resolve().parents[2]


def run_suite(folder: Path, factory: str, *options: str) -> tuple[int, dict[str, list[str]], str]:
    """Exit code; the messages of the failures by test name; what was printed. Only conformance/test_*.py are run."""
    report = folder / "report.xml"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [
        sys.executable,
        "-m",
        "conformance",
        "--quick",
        f"--backend=conformance.selftest.{factory}",
        "--tb=short",
    ]
    command += ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", *options]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    failures: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        for failure in case.findall("failure"):
            failures.setdefault(case.get("name", "").partition("[")[0], []).append(failure.get("message", ""))
    return done.returncode, failures, done.stdout


def test_every_mutant_is_tried():
    assert sorted(PORTS) == sorted(mutant.factory for mutant in MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.factory)
def test_mutant_is_caught(mutant, tmp_path):
    """By the named tests, each of which compares and finds a difference; a crash would prove nothing."""
    code, failures, printed = run_suite(tmp_path, f"mutants:{mutant.factory}", "-k", " or ".join(mutant.caught_by))
    assert code == 1, printed
    assert set(failures) == set(mutant.caught_by), printed
    messages = [message for several in failures.values() for message in several]
    assert all(re.match(r"(AssertionError|assert |.*ToleranceError)", message) for message in messages), messages


def test_correct_port_passes_everything(tmp_path):
    code, failures, printed = run_suite(tmp_path, "port:make_port")
    assert failures == {}
    assert code == 0, printed
    assert re.search(r"^\d\d+ passed", printed.splitlines()[-1]), printed
    assert not list(tmp_path.glob(".hypothesis*")), "the suite left a folder behind"

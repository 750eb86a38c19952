"""Reports of small runs, and ledgers that are made up."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conformance.report.tally import OWN, Entry, Ledger
from conformance.report.verdict import summarise

PACKAGE = Path(__file__).resolve().parents[1]
SINKHORN = PACKAGE / "test_sinkhorn_projection.py"
AGREES = f"{SINKHORN}::test_agrees_with_the_reference"
SECOND_INDEX = f"{PACKAGE / 'test_residual_mixing.py'}::test_contracts_over_the_second_index"
PORT, MUTANT = "conformance.selftest.port:make_port", "conformance.selftest.mutants:transposed_mixing"


def run(folder, *arguments):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *sys.path]),
    }
    command = [sys.executable, "-m", "conformance", "--quick", "-q", "-p", "no:cacheprovider", *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def read(path):
    """As another program would: without the constants that JSON does not have."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)


def report_of(folder, *arguments, status=0):
    done = run(folder, *arguments, "--conformance-report=out.html", "--conformance-report=out.json")
    assert done.returncode == status, done.stdout + done.stderr
    return read(folder / "out.json"), (folder / "out.html").read_text(encoding="utf-8"), done.stdout


def made_up(*outcomes, own="passed"):
    """A ledger of tests of SINK-1, one for each outcome."""
    ledger = Ledger()
    for number, (backend, outcome) in enumerate([*(("port", outcome) for outcome in outcomes), (OWN, own)]):
        entry = Entry(f"t.py::test[{number}]", f"t.py::test[{number}]", backend, ("SINK-1",), True, None)
        entry.note(outcome, "<script>alert('a & b')</script>")
        ledger.entries[str(number)] = entry
    return ledger


def summary_of(ledger, incomplete=()):
    options = {"profile": "crma-ci", "examples_per_property": 150, "same_examples_every_time": True, "seed": None}
    options |= {"clause": [], "keyword": "", "markers": "", "tests_named": []}
    return summarise(ledger, {}, options, list(incomplete), time.time())

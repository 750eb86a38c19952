"""Reports of small runs, and ledgers that are made up."""

import json
import time

import pytest

from conformance.report.tally import OWN, Entry, Ledger
from conformance.report.verdict import summarise
from conformance.selftest.programs import PACKAGE, run

SINKHORN = PACKAGE / "test_sinkhorn_projection.py"
AGREES = f"{SINKHORN}::test_agrees_with_the_reference"
SECOND_INDEX = f"{PACKAGE / 'test_residual_mixing.py'}::test_contracts_over_the_second_index"
PORT, MUTANT = "conformance.selftest.port:make_port", "conformance.selftest.mutants:transposed_mixing"


def run_suite(folder, *arguments):
    command = ("-m", "conformance", "--quick", "-q", "-p", "no:cacheprovider")
    return run(folder, *command, *arguments, OMP_NUM_THREADS="1")


def read(path):
    """As another program would: without the constants that JSON does not have."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)


def report_of(folder, *arguments, status=0):
    done = run_suite(folder, *arguments, "--conformance-report=out.html", "--conformance-report=out.json")
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

"""A data budget certified from the files of a run, and each way to break it. Clauses: DATA-1..DATA-5."""

import shutil
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from backends.finetune.certify.certification import certify_run
from backends.finetune.certify.tests.test_certify import COUNTED, DATA, EPSILON, STILL, edit_record, failures, write_run
from backends.finetune.runs.moments_file import read_moments, write_moments
from backends.torch.state import load_state, save_state

PLAUSIBLE, SEEN, SAME, WHOLE = (
    "moments plausible",
    "data displacement, stored",
    "basis unchanged",
    "moment files whole",
)
LOGGED, AS_LOGGED = "data displacement, logged", "data displacement as logged"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("moments") / "run", ["frozen", DATA, STILL], seeds=(0,))


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def change_state(run, condition, phase, **changes):
    path = run / f"0-{condition}/crma-{phase}.safetensors"
    state, config, *rest = load_state(path)
    changed = {field: change(getattr(state, field)) for field, change in changes.items()}
    save_state(path, state._replace(**changed), config, *rest)


def change_moments(run, phase, change):
    path = run / f"0-{DATA}/moments-{phase}.safetensors"
    write_moments(path, *change(*read_moments(path)))


@pytest.mark.clause("DATA-2", "DATA-3", "DATA-4")
def test_a_run_that_keeps_its_data_budget_passes_and_the_worst_case_is_shown_beside_it(run):
    assert failures(run) == {}
    found: dict[Any, Any] = {(check.condition, check.name): check for check in certify_run(run).checks}
    seen = found[DATA, SEEN]
    assert seen.value == pytest.approx(EPSILON, rel=1e-3)
    assert 0 <= seen.margin < 1e-4 * EPSILON + 1e-6
    assert {found[DATA, name].verdict for name in (PLAUSIBLE, SAME, WHOLE, LOGGED, AS_LOGGED)} == {"pass"}
    worst = found[DATA, "displacement, stored"]
    assert (worst.verdict, worst.value > seen.value) == ("not promised", True)
    assert found[STILL, SAME].verdict == found[STILL, "displacement, stored"].verdict == "pass"
    assert (STILL, SEEN) not in found


@pytest.mark.clause("DATA-3")
def test_a_state_beyond_epsilon_fails(run):
    change_state(run, DATA, 2, gate_logits=lambda gates: gates + 3)
    found = failures(run)
    assert "above the bound" in found[DATA, 0, SEEN]
    assert {key[2] for key in found} == {SEEN, AS_LOGGED, "stored states as logged"}


@pytest.mark.clause("DATA-3")
def test_what_was_logged_beyond_epsilon_fails_and_an_earlier_version_that_logged_nothing_does_not(run):
    def beyond(record):
        record["spectral"]["data_displacement_max"][0] = EPSILON + 2e-6

    def left_out(record):
        record["spectral"]["data_displacement_max"][1] = None

    def unknown(record):
        del record["spectral"]["data_displacement_max"]

    edit_record(run, DATA, 2, beyond)
    assert set(failures(run)) == {(DATA, 0, LOGGED)}
    edit_record(run, DATA, 2, left_out)
    assert "or none where there is" in failures(run)[DATA, 0, "records as training writes them"]
    for phase in range(3):
        edit_record(run, DATA, phase, unknown)
    assert failures(run) == {}
    edit_record(run, STILL, 1, lambda record: record["spectral"].update(data_displacement_max=[0.001] * 2))
    assert "where there is no data budget" in failures(run)[STILL, 0, "records as training writes them"]


@pytest.mark.clause("DATA-4")
@pytest.mark.parametrize("condition", [DATA, STILL])
def test_a_basis_that_moved_fails_by_one_bit(run, condition):
    change_state(run, condition, 1, bases=lambda bases: torch.nextafter(bases, bases + 1))
    found = failures(run)
    assert "crma-1.safetensors differs" in found[condition, 0, SAME]
    assert ((condition, 0, PLAUSIBLE) in found) == (condition == DATA)


FORGED = {
    "larger than the basis allows": (2, lambda t, c: (100 * t, c), "a trace of"),
    "no sum of squares": (0, lambda t, c: (t - 0.5 * np.trace(t[0]) * np.eye(4), c), "eigenvalue"),
    "lopsided": (0, lambda t, c: (t + np.triu(np.ones((4, 4)), 1), c), "mirror images"),
    "less than before": (1, lambda t, c: (0.1 * t, c), "eigenvalue"),
    "of more tokens": (
        1,
        lambda t, c: (t, c + 1),
        f"of {2 * COUNTED + 1} tokens, while the records have {2 * COUNTED}",
    ),
    "of no more tokens than before": (1, lambda t, c: (t, COUNTED), "tokens of the moment"),
    "of fewer layers": (0, lambda t, c: (t[:1], c), "while (2, 4, 4) fit"),
    "of another width": (2, lambda t, c: (t[:, :2, :2], c), "while (2, 4, 4) fit"),
    "nothing": (0, lambda t, c: (0 * t, c), "a trace of 0"),
    "not finite": (1, lambda t, c: (np.nan * t, c), "NaN or infinity"),
}


@pytest.mark.clause("DATA-1", "DATA-5")
@pytest.mark.parametrize(("phase", "change", "reason"), FORGED.values(), ids=FORGED)
def test_a_forged_moment_fails(run, phase, change, reason):
    change_moments(run, phase, change)
    found = failures(run)
    assert reason in found[DATA, 0, PLAUSIBLE]
    assert {key[0] for key in found} == {DATA}


def test_a_moment_that_is_damaged_missing_or_not_recorded_fails(run):
    path = run / f"0-{DATA}/moments-0.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert "0-modular@data-0.01/moments-0.safetensors: " in failures(run)[DATA, 0, WHOLE]
    path.unlink()
    found = failures(run)
    assert "no moment to measure it with" in found[DATA, 0, PLAUSIBLE]
    assert {(DATA, 0, WHOLE), (DATA, 0, "files as recorded")} <= set(found)


def test_a_moment_of_fewer_texts_than_recorded_fails_only_where_they_are_known(run):
    def other(record):
        record["texts"]["train"]["texts"] += 1

    def unknown(record):
        del record["texts"]

    edit_record(run, DATA, 0, other)
    assert "moments-0 of 5 tokens, while the records have 4" in failures(run)[DATA, 0, PLAUSIBLE]
    for phase in range(3):
        edit_record(run, DATA, phase, unknown)
    assert failures(run) == {}

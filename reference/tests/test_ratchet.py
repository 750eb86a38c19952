"""The ratchet: nothing that it decides ever makes an earlier task worse. Clauses: CL-11, CL-12."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from conformance.strategies import SEEDS
from reference.errors import ConfigError, NonFiniteError, ShapeError


@pytest.mark.clause("CL-11")
def test_by_hand():
    """Lower, equal and higher; one unit in the last place counts."""
    above = np.nextafter(1.0, 2.0)
    assert reference.ratchet_moves([1.0, 1.0, 1.0], [0.9, 1.0, above]).tolist() == [True, True, False]
    assert reference.ratchet_moves([], []).tolist() == []


@pytest.mark.clause("CL-11")
@given(tasks=st.integers(1, 6), phases=st.integers(1, 8), seed=SEEDS)
def test_no_task_ever_answers_with_a_version_that_served_it_worse_than_its_own(tasks, phases, seed):
    """Losses of every version on every task, drawn; each task follows the ratchet from the version of its own phase."""
    losses = np.random.default_rng(seed).uniform(0.5, 3.0, size=(phases + 1, tasks))
    version = np.zeros(tasks, dtype=int)
    for phase in range(1, phases + 1):
        before = losses[version, range(tasks)]
        moves = reference.ratchet_moves(before, losses[phase])
        version = np.where(moves, phase, version)
        now = losses[version, range(tasks)]
        assert (now <= before).all()
        assert (now == np.minimum(before, losses[phase])).all()
    assert (losses[version, range(tasks)] == losses.min(axis=0)).all()


@pytest.mark.clause("CL-12")
def test_promises_by_hand():
    """At the limit, above it, above it but no worse than before, and above what was before."""
    own, now = [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.05, 1.05]
    after = [1.01, 1.0101, 1.05, 1.06]
    assert reference.broken_promises(own, now, after, promise=0.01).tolist() == [False, True, False, True]
    assert reference.broken_promises([2.0], [2.0], [2.0], promise=0).tolist() == [False]


@pytest.mark.clause("CL-11", "CL-12", "ERR-1")
@pytest.mark.parametrize(
    ("losses", "error"),
    [
        (([1.0], [1.0, 2.0]), ShapeError),
        (([[1.0]], [[1.0]]), ShapeError),
        ((["a"], [1.0]), ShapeError),
        (([1.0], [np.nan]), NonFiniteError),
        (([np.inf], [1.0]), NonFiniteError),
    ],
)
def test_losses_that_are_none_are_refused(losses, error):
    with pytest.raises(error):
        reference.ratchet_moves(*losses)
    with pytest.raises(error):
        reference.broken_promises(losses[0], losses[0], losses[1], promise=0.01)


@pytest.mark.clause("CL-12", "ERR-1")
@pytest.mark.parametrize("promise", [-0.01, np.nan, np.inf, None, "1%", [0.01], True])
def test_promises_that_are_none_are_refused(promise):
    with pytest.raises(ConfigError, match="promise"):
        reference.broken_promises([1.0], [1.0], [1.0], promise)
    with pytest.raises(ConfigError, match="own"):
        reference.broken_promises([0.0], [1.0], [1.0], 0.01)

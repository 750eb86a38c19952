"""Continual metrics of the reference, against the paper's figures and its definitions. Clauses: CL-1..CL-7."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from conformance.strategies import SEEDS
from reference.errors import ConfigError, NonFiniteError, ShapeError

#: seed: (MODULAR holdout, FROZEN holdout, advantage in %), paper Table 7
TABLE_7 = {0: (1.2530, 1.2716, 1.46), 42: (1.2657, 1.2912, 1.97), 1234: (1.2705, 1.3036, 2.54)}


def losses(tasks, seed):
    matrix = np.random.default_rng(seed).uniform(0.5, 3.0, size=(tasks, tasks))
    return np.where(np.tri(tasks, dtype=bool), matrix, np.nan)


@pytest.mark.clause("CL-4")
def test_advantage_of_table_7():
    values = [100 * reference.advantage(frozen, modular) for modular, frozen, _ in TABLE_7.values()]
    assert values == pytest.approx([percent for _, _, percent in TABLE_7.values()], abs=0.006)
    assert np.mean(values) == pytest.approx(1.99, abs=0.006)
    assert np.std(values, ddof=1) == pytest.approx(0.54, abs=0.006)


@pytest.mark.clause("CL-1", "CL-2", "CL-3")
@given(tasks=st.integers(1, 7), seed=SEEDS)
def test_definitions(tasks, seed):
    matrix = losses(tasks, seed)
    metrics = reference.continual_metrics(matrix)
    prior = range(tasks - 1)
    drifts = [(matrix[-1, j] - matrix[j, j]) / matrix[j, j] for j in prior]
    assert metrics.drift_per_task == pytest.approx(drifts, rel=1e-12)
    assert metrics.drift == pytest.approx(sum(drifts) / max(1, len(drifts)), abs=1e-12)
    assert metrics.final_holdout == pytest.approx(sum(matrix[-1]) / tasks, rel=1e-12)
    moved = [matrix[-1, j] - matrix[j, j] for j in prior]
    assert metrics.backward_transfer == pytest.approx(sum(moved) / max(1, len(moved)), abs=1e-12)


@pytest.mark.clause("CL-2")
def test_forgetting_is_positive_and_hand_checked():
    """A loss of 2 that ends at 2.76, and one of 1 that ends at 1.38: the +38% of NAIVE."""
    metrics = reference.continual_metrics([[2.0, np.nan, np.nan], [2.1, 1.0, np.nan], [2.76, 1.38, 0.5]])
    assert metrics.drift == pytest.approx(0.38, rel=1e-12)
    assert metrics.backward_transfer == pytest.approx(0.57, rel=1e-12)
    assert metrics.final_holdout == pytest.approx((2.76 + 1.38 + 0.5) / 3, rel=1e-12)


@pytest.mark.clause("CL-5")
@given(tasks=st.integers(1, 7), seed=SEEDS)
def test_a_loss_that_stays_has_a_drift_of_exactly_zero(tasks, seed):
    """FROZEN: nothing that an earlier task sees changes, so its column stays bit for bit."""
    own = np.random.default_rng(seed).uniform(0.5, 3.0, size=tasks)
    metrics = reference.continual_metrics(np.tile(own, (tasks, 1)))
    assert metrics.drift == 0.0
    assert metrics.backward_transfer == 0.0


@pytest.mark.clause("CL-1")
def test_tasks_not_yet_seen_are_ignored():
    matrix = losses(4, 3)
    filled = np.where(np.isnan(matrix), 1e9, matrix)
    first, second = reference.continual_metrics(matrix), reference.continual_metrics(filled)
    assert first[1:] == second[1:]
    assert np.array_equal(first.drift_per_task, second.drift_per_task)
    assert reference.continual_metrics([[1.0, np.nan], [1.0, 0.0]]).drift == 0.0  # the last task has no drift


@pytest.mark.clause("CL-6")
@given(tasks=st.integers(1, 7), seed=SEEDS)
def test_forward_transfer_is_the_mean_change_before_a_task_is_trained(tasks, seed):
    before, base = np.random.default_rng(seed).uniform(0.5, 3.0, size=(2, tasks))
    expected = sum(before[j] - base[j] for j in range(1, tasks)) / max(1, tasks - 1)
    assert reference.forward_transfer(before, base) == pytest.approx(expected, abs=1e-12)
    before[0] = np.nan  # nothing comes before the first task
    assert reference.forward_transfer(before, base) == pytest.approx(expected, abs=1e-12)


@pytest.mark.clause("CL-6")
def test_forward_transfer_is_negative_where_earlier_tasks_helped_and_hand_checked():
    """1.6 in the place of 2 and 0.9 in the place of 1: half of -0.4 - 0.1. Bare losses give 0 exactly: FROZEN."""
    base = [3.0, 2.0, 1.0]
    assert reference.forward_transfer([3.0, 1.6, 0.9], base) == pytest.approx(-0.25, rel=1e-12)
    assert reference.forward_transfer(base, base) == 0.0


@pytest.mark.clause("CL-7")
@given(tasks=st.integers(1, 7), canaries=st.integers(1, 60), seed=SEEDS)
def test_exact_match_transfer_counts_canaries(tasks, canaries, seed):
    recalled = np.random.default_rng(seed).integers(0, canaries + 1, size=(tasks, tasks))
    matrix = np.where(np.tri(tasks, dtype=bool), recalled / canaries, np.nan)
    gained = sum(int(recalled[-1, j]) - int(recalled[j, j]) for j in range(tasks - 1))
    expected = gained / (canaries * max(1, tasks - 1))
    assert reference.exact_match_transfer(matrix) == pytest.approx(expected, abs=1e-12)


#: condition: canaries of 50 of the first domain recalled after phase 1 and at the end, transfer; paper section 6.2
FICTIONAL = {"LoRA": (37, 31, -0.090), "CRMA": (37, 39, 0.020)}


@pytest.mark.clause("CL-7")
@pytest.mark.parametrize(("condition", "gained"), [("LoRA", -3), ("CRMA", 0)])
def test_the_papers_transfer_of_exact_match_is_a_mean_over_its_two_prior_domains(condition, gained):
    """Given the first domain, the printed mean leaves one whole number of canaries for the second."""
    own, final, printed = FICTIONAL[condition]

    def transfer(change):
        second = [25 / 50, (25 + change) / 50]
        return reference.exact_match_transfer(
            [[own / 50, np.nan, np.nan], [own / 50, second[0], np.nan], [final / 50, second[1], 0.5]]
        )

    assert [change for change in range(-25, 26) if abs(transfer(change) - printed) < 0.0005] == [gained]


METRICS, MATCH = reference.continual_metrics, reference.exact_match_transfer


@pytest.mark.clause("CL-1", "CL-2", "CL-4", "CL-6", "CL-7", "ERR-1")
@pytest.mark.parametrize(
    ("metric", "arguments", "error"),
    [
        (METRICS, [[[1.0, 2.0]]], ShapeError),
        (METRICS, [[]], ShapeError),
        (METRICS, [[[np.nan]]], NonFiniteError),
        (METRICS, [[[1.0, np.nan], [np.inf, 1.0]]], NonFiniteError),
        (METRICS, [[[0.0, np.nan], [1.0, 1.0]]], ConfigError),
        (METRICS, [[[-1.0, np.nan], [1.0, 1.0]]], ConfigError),
        (reference.advantage, [0.0, 1.0], ConfigError),
        (reference.advantage, [-1.0, 1.0], ConfigError),
        (reference.advantage, [np.nan, 1.0], ConfigError),
        (reference.forward_transfer, [[1.0, 2.0], [1.0]], ShapeError),
        (reference.forward_transfer, [[], []], ShapeError),
        (reference.forward_transfer, [[[1.0]], [[1.0]]], ShapeError),
        (reference.forward_transfer, [["a", "b"], [1.0, 1.0]], ShapeError),
        (reference.forward_transfer, [[1.0, None], [1.0, 1.0]], NonFiniteError),
        (reference.forward_transfer, [[1.0, 1.0], [1.0, np.inf]], NonFiniteError),
        (MATCH, [[[0.5, 0.5]]], ShapeError),
        (MATCH, [[]], ShapeError),
        (MATCH, [[[0.5], [0.5, 0.5]]], ShapeError),
        (MATCH, [[[np.nan]]], NonFiniteError),
        (MATCH, [[[0.5, np.nan], [np.nan, 0.5]]], NonFiniteError),
        (MATCH, [[[74.0, np.nan], [62.0, 70.0]]], ConfigError),
        (MATCH, [[[0.5, np.nan], [-0.1, 0.5]]], ConfigError),
    ],
)
def test_what_gives_no_figure_is_refused(metric, arguments, error):
    with pytest.raises(error):
        metric(*arguments)

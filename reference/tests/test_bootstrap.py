"""Intervals by resampling, against cases whose distribution is known. Clause: CL-13."""

import numpy as np
import pytest

import reference
from reference.errors import ConfigError, NonFiniteError, ShapeError

pytestmark = pytest.mark.clause("CL-13")


def mean(sums):
    """Of one task: the first column over the second."""
    return sums[:, 0, 0] / sums[:, 0, 1]


def drift(sums):
    """Of one task: columns own, final."""
    return sums[:, 0, 1] / sums[:, 0, 0] - 1


def seeds_of(values):
    """A seed with a single text for each value."""
    return [[np.array([[value, 1.0]])] for value in values]


def test_two_seeds_have_three_outcomes():
    """Values 1 and 3: the mean of a resample is 1, 2 or 3, with chances 1/4, 1/2 and 1/4."""
    assert reference.paired_bootstrap(seeds_of([1.0, 3.0]), mean) == (2.0, 1.0, 3.0)
    assert reference.paired_bootstrap(seeds_of([1.0, 3.0]), mean, confidence=0.4) == (2.0, 2.0, 2.0)


def test_one_seed_has_the_interval_of_a_mean_of_texts():
    """Of many texts, the mean is normal with the population SD over the square root of n."""
    losses = np.random.default_rng(3).exponential(2.0, 400)
    found = reference.paired_bootstrap([[np.stack([losses, np.ones(400)], axis=1)]], mean, resamples=40_000)
    half = 1.96 * losses.std() / 400**0.5
    assert found.estimate == pytest.approx(losses.mean(), rel=1e-12)
    assert found[1:] == pytest.approx((losses.mean() - half, losses.mean() + half), abs=0.06 * half)


def test_what_is_measured_of_a_text_twice_is_drawn_together():
    """Every text loses exactly 1%: however much texts differ, no resample says anything else."""
    own = np.random.default_rng(0).exponential(1.0, 50)
    found = reference.paired_bootstrap([[np.stack([own, 1.01 * own], axis=1)]] * 3, drift)
    assert found == pytest.approx((0.01, 0.01, 0.01), rel=1e-9)


def test_a_seed_that_is_drawn_twice_comes_with_other_texts():
    """Two equal seeds of one text's spread: were their texts drawn once, the interval would not narrow."""
    rng = np.random.default_rng(1)
    table = np.stack([rng.normal(5.0, 1.0, 200), np.ones(200)], axis=1)
    one, four = (reference.paired_bootstrap([[table]] * count, mean) for count in (1, 4))
    assert (four.high - four.low) / (one.high - one.low) == pytest.approx(0.5, rel=0.05)


def test_six_seeds_cover_what_the_text_says():
    """87% of the 95% intervals of six normal values hold the mean: |t| of 5 degrees of freedom below 1.96 sqrt(5/6)."""
    rng = np.random.default_rng(2)
    found = [reference.paired_bootstrap(seeds_of(rng.normal(size=6)), mean, resamples=1000) for _ in range(500)]
    assert np.mean([low <= 0 <= high for _, low, high in found]) == pytest.approx(0.87, abs=0.04)


def test_tasks_are_resampled_by_themselves_and_the_order_of_seeds_is_the_callers():
    rng = np.random.default_rng(4)
    tables = [np.stack([rng.normal(level, 1.0, 30 * level), np.ones(30 * level)], axis=1) for level in (1, 4)]
    found = reference.paired_bootstrap([tables], lambda sums: (sums[:, :, 0] / sums[:, :, 1]).mean(axis=1))
    assert found.estimate == pytest.approx(np.mean([table[:, 0].mean() for table in tables]))
    half = 1.96 * sum(table[:, 0].var() / len(table) for table in tables) ** 0.5 / 2
    assert found.high - found.low == pytest.approx(2 * half, rel=0.06)


GOOD = np.ones((3, 2))


@pytest.mark.parametrize(
    ("seeds", "statistic", "options", "error"),
    [
        ([], mean, {}, ShapeError),
        ([[]], mean, {}, ShapeError),
        ([[GOOD], [GOOD, GOOD]], mean, {}, ShapeError),
        ([[GOOD], [np.ones((3, 3))]], mean, {}, ShapeError),
        ([[np.ones((0, 2))]], mean, {}, ShapeError),
        ([[np.ones(3)]], mean, {}, ShapeError),
        ([[np.array([[1.0, np.nan]])]], mean, {}, NonFiniteError),
        ([[np.array([[1.0, 0.0]])]], lambda sums: np.full(len(sums), np.nan), {}, NonFiniteError),
        ([[GOOD]], lambda sums: sums, {}, ShapeError),
        ([[GOOD]], mean, {"resamples": 99}, ConfigError),
        ([[GOOD]], mean, {"resamples": 1e3}, ConfigError),
        ([[GOOD]], mean, {"resamples": True}, ConfigError),
        ([[GOOD]], mean, {"confidence": 1.0}, ConfigError),
        ([[GOOD]], mean, {"confidence": "95%"}, ConfigError),
    ],
)
def test_what_cannot_be_resampled_is_refused(seeds, statistic, options, error):
    with pytest.raises(error):
        reference.paired_bootstrap(seeds, statistic, **options)

"""Paired tests and intervals, against hand-worked cases and the paper's Tables 7 and 8. Clauses: CL-9."""

import math
import sys
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from reference.errors import ConfigError, MissingPackageError, NonFiniteError, ShapeError

pytestmark = pytest.mark.clause("CL-9")

#: final mean holdout of seeds 0, 42 and 1234, paper Table 7
FROZEN, MODULAR = [1.2716, 1.2912, 1.3036], [1.2530, 1.2657, 1.2705]


# -- Student's t --


def test_t_test_by_hand():
    """Differences 1, 2, 3: mean 2, SD 1, t = 2 sqrt(3). For 2 degrees of freedom p = 1 - t / sqrt(2 + t^2)."""
    found = reference.paired_t_test([3.0, 5.0, 7.0], [2.0, 3.0, 4.0])
    assert found == pytest.approx((2.0, 1.0, 2 * 3**0.5, 1 - (6 / 7) ** 0.5, 3), rel=1e-14)
    assert reference.paired_t_test([2.0, 3.0, 4.0], [3.0, 5.0, 7.0])[0::2] == pytest.approx((-2.0, -(12**0.5), 3))


@pytest.mark.parametrize("t", [0.001, 0.01, 0.5, 1.0, 3.0, 30.0, 1e4, 1e9])
def test_p_of_one_degree_of_freedom_is_that_of_cauchy(t):
    """Differences t - 1 and t + 1 have mean t and SD sqrt(2), so the statistic is t; p = (2 / pi) arctan(1 / t)."""
    found = reference.paired_t_test([t - 1, t + 1], [0.0, 0.0])
    assert found.p == pytest.approx(2 / math.pi * math.atan(1 / found.t), rel=1e-13)
    assert found.t == pytest.approx(t, rel=1e-7)


def test_differences_that_do_not_vary():
    assert reference.paired_t_test([1.0, 2.0], [1.0, 2.0])[:4] == (0.0, 0.0, 0.0, 1.0)
    assert reference.paired_t_test([1.0, 2.0], [2.0, 3.0])[:4] == (-1.0, 0.0, -math.inf, 0.0)


# -- sign flips --


def test_sign_flips_by_hand():
    """1, 2, 3 and 4: of 16 sums only the two with all signs equal reach 10. With -1 for 1 the sum is 8, which 10 and
    8 reach, each with either sign: 4 of 16."""
    zeros = [0.0] * 4
    assert reference.sign_flip_test([1.0, 2.0, 3.0, 4.0], zeros) == 2 / 16
    assert reference.sign_flip_test([-1.0, 2.0, 3.0, 4.0], zeros) == 4 / 16
    assert reference.sign_flip_test(zeros, zeros) == 1.0


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=2, max_size=8))
def test_sign_flips_are_counted_exactly_with_ties(pairs):
    """In tenths, where subtraction rounds, ties still count as ties."""
    differences = [a - b for a, b in pairs]
    sums = [
        sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in product((1, -1), repeat=len(pairs))
    ]
    expected = sum(abs(s) >= abs(sum(differences)) for s in sums) / len(sums)
    a, b = ([value / 10 for value in side] for side in zip(*pairs, strict=True))
    assert reference.sign_flip_test(a, b) == expected


@pytest.mark.parametrize("n", range(2, 9))
def test_no_p_of_sign_flips_is_below_two_in_two_to_the_n(n):
    assert reference.sign_flip_test([1e6 + i for i in range(n)], [0.0] * n) == 2 / 2**n


def test_three_seeds_of_table_7_are_too_few_for_sign_flips():
    """MODULAR beats FROZEN at every seed; t = 6.15 gives p = 0.025 if normal, sign flips cannot say less than 0.25."""
    found = reference.paired_t_test(FROZEN, MODULAR)
    assert found.mean_difference == pytest.approx(1.2888 - 1.2631, abs=1e-4)
    assert found.t == pytest.approx(6.15, abs=0.005)
    assert found.p == pytest.approx(0.0255, abs=0.00005)
    assert reference.sign_flip_test(FROZEN, MODULAR) == 0.25


# -- fractions and counts --


@given(n=st.integers(1, 400), fraction=st.floats(0, 1), confidence=st.floats(0.01, 0.9999))
def test_wilson_bounds_solve_the_equation_of_the_score_test(n, fraction, confidence):
    """|f - p| = z sqrt(p (1 - p) / n) at both ends, with z from the error function."""
    successes = round(fraction * n)
    low, high = reference.wilson_interval(successes, n, confidence)
    assert 0 <= low < successes / n or low == successes == 0
    assert 1 >= high > successes / n or high == 1 == successes / n
    for bound in {low, high} - {0.0, 1.0}:
        z = abs(successes / n - bound) / math.sqrt(bound * (1 - bound) / n)
        assert math.erf(z / math.sqrt(2)) == pytest.approx(confidence, abs=1e-7)


@pytest.mark.parametrize(
    ("successes", "low", "high"), [(98, 0.930, 0.994), (38, 0.291, 0.478), (88, 0.802, 0.930), (53, 0.433, 0.625)]
)
def test_intervals_of_table_8(successes, low, high):
    assert reference.wilson_interval(successes, 100) == pytest.approx((low, high), abs=0.0005)


def test_no_success_and_no_failure_reach_the_end_exactly():
    low, high = reference.wilson_interval(0, 10)
    assert low == 0.0
    assert high == pytest.approx(3.8414588 / 13.8414588, rel=1e-7)  # z^2 / (n + z^2)
    assert reference.wilson_interval(10, 10) == (pytest.approx(1 - high, rel=1e-12), 1.0)


def test_mcnemar_by_hand():
    """9 and 1: 2 (1 + 10) / 2^10."""
    assert reference.mcnemar_exact(9, 1) == 22 / 1024
    assert reference.mcnemar_exact(0, 0) == reference.mcnemar_exact(4, 4) == 1.0
    assert reference.mcnemar_exact(np.int64(5), 0) == 1 / 16


def test_which_discordant_counts_table_8_allows():
    """b - c = 35 on the regrade, 88 against 53, with at most 12 wrong with CRMA. The p of 8e-8 that is printed leaves
    one case: 40 and 5. On the first grading, 98 against 38, p is below 3e-16 whatever the two errors were."""
    regrade = {c: reference.mcnemar_exact(35 + c, c) for c in range(13)}
    assert [c for c, p in regrade.items() if 7.5e-8 <= p < 8.5e-8] == [5]
    assert max(reference.mcnemar_exact(60 + c, c) for c in range(3)) < 3e-16


# -- refusals --


@pytest.mark.clause("ERR-1")
@pytest.mark.parametrize("test", [reference.paired_t_test, reference.sign_flip_test])
@pytest.mark.parametrize(
    ("a", "b", "error"),
    [
        ([], [], ShapeError),
        ([1.0], [2.0], ShapeError),
        ([1.0, 2.0], [1.0], ShapeError),
        ([[1.0, 2.0]], [[1.0, 2.0]], ShapeError),
        (["x", "y"], [1.0, 2.0], ShapeError),
        ([1.0, np.nan], [1.0, 2.0], NonFiniteError),
        ([1.0, 2.0], [-np.inf, 2.0], NonFiniteError),
        ([1.7e308, 2.0], [-1.7e308, 2.0], NonFiniteError),
    ],
)
def test_results_that_are_not_paired_are_refused(test, a, b, error):
    with pytest.raises(error):
        test(a, b)


@pytest.mark.clause("ERR-1")
def test_more_pairs_than_can_be_flipped_are_refused():
    assert reference.sign_flip_test(range(1, 21), [0] * 20) == 2 / 2**20
    with pytest.raises(ShapeError, match="n <= 20"):
        reference.sign_flip_test(range(21), [0] * 21)


@pytest.mark.clause("ERR-1")
@pytest.mark.parametrize(
    "arguments", [(-1, 10), (11, 10), (0, 0), (1.0, 10), (True, 10), (1, "10"), (1, 10, 0), (1, 10, 1.0), (1, 10, 95)]
)
def test_fractions_that_are_none_are_refused(arguments):
    with pytest.raises(ConfigError):
        reference.wilson_interval(*arguments)


@pytest.mark.clause("ERR-1")
@pytest.mark.parametrize("counts", [(-1, 0), (0, 0.5), (True, 0), (None, 1), (1, math.nan)])
def test_counts_that_are_none_are_refused(counts):
    with pytest.raises(ConfigError):
        reference.mcnemar_exact(*counts)


def test_without_scipy_one_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'crma\[finetune\]'"):
        reference.mcnemar_exact(9, 1)
    assert reference.sign_flip_test(FROZEN, MODULAR) == 0.25

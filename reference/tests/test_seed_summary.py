"""Summary over seeds, against every column of the paper's Table 7 and against exact arithmetic. Clauses: CL-8."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from reference.errors import NonFiniteError, ShapeError

#: column: seeds 0, 42 and 1234; mean; half of the last digit of the values, and of the mean; where the paper prints
#: one, the sample SD, half of its last digit, and whether the values can give it
TABLE_7 = {
    "MODULAR drift %": ((-0.03, -0.10, -0.36), -0.17, 0.005, 0.005, (0.17, 0.005, True)),
    "NAIVE drift %": ((38.1, 41.7, 49.0), 42.96, 0.05, 0.005, (5.5, 0.05, True)),
    "FROZEN drift %": ((1.47, 1.66, 2.71), 1.95, 0.005, 0.005, (0.64, 0.005, False)),
    "MODULAR holdout": ((1.2530, 1.2657, 1.2705), 1.2631, 0.00005, 0.00005, None),
    "FROZEN holdout": ((1.2716, 1.2912, 1.3036), 1.2888, 0.00005, 0.00005, None),
    "advantage %": ((1.46, 1.97, 2.54), 1.99, 0.005, 0.005, (0.54, 0.005, True)),
}


@pytest.mark.clause("CL-8")
@pytest.mark.parametrize("column", TABLE_7)
def test_means_and_deviations_of_table_7(column):
    """A mean moves by at most as much as the values it is taken of, here the half digit that was rounded off; n values
    that move by h each move their sample SD by at most h sqrt(n / (n - 1)). Of the four SDs that the paper prints,
    FROZEN's is out of reach: as sample SD (0.668) and as population SD (0.545) alike."""
    values, mean, of_value, of_mean, deviation = TABLE_7[column]
    summary = reference.seed_summary(values)
    assert summary.mean == pytest.approx(mean, abs=of_value + of_mean + 1e-12)
    if deviation is not None:
        sd, of_sd, within_reach = deviation
        reach = of_value * np.sqrt(1.5) + of_sd
        assert summary.sd is not None
        assert bool(abs(summary.sd - sd) <= reach) is within_reach
        assert abs(np.std(values) - sd) > reach  # so no other definition would do


@pytest.mark.clause("CL-8")
def test_ranges_of_modular_and_naive_do_not_touch_as_the_paper_says():
    modular, naive = (reference.seed_summary(TABLE_7[f"{name} drift %"][0]) for name in ("MODULAR", "NAIVE"))
    assert (modular.min, modular.max) == (-0.36, -0.03)
    assert (naive.min, naive.max) == (38.1, 49.0)
    assert modular.max < naive.min


@pytest.mark.clause("CL-8")
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=9))
def test_summary_is_that_of_exact_arithmetic(values):
    exact = [Fraction(value) for value in values]
    mean = sum(exact) / len(exact)
    variance = sum((value - mean) ** 2 for value in exact) / (len(exact) - 1)
    summary = reference.seed_summary(values)
    assert summary.mean == float(mean)
    assert summary.sd == pytest.approx(float(variance) ** 0.5, rel=1e-14)
    assert (summary.min, summary.max, summary.n) == (min(values), max(values), len(values))
    assert summary.min <= summary.mean <= summary.max


@pytest.mark.clause("CL-8")
def test_equal_values_have_no_deviation_and_one_value_has_none_at_all():
    assert reference.seed_summary([0.1] * 3) == (0.1, 0.0, 0.1, 0.1, 3)
    assert reference.seed_summary(np.array([0.1])) == (0.1, None, 0.1, 0.1, 1)
    assert reference.seed_summary([1.0, 2.0, 4.5]).sd == pytest.approx(3.25**0.5, rel=1e-14)  # 1.5^2, 0.5^2, 2^2 over 2


@pytest.mark.clause("CL-8", "ERR-1")
@pytest.mark.parametrize(
    ("values", "error"),
    [
        ([], ShapeError),
        (1.0, ShapeError),
        ([[1.0, 2.0]], ShapeError),
        (["one"], ShapeError),
        ([[1.0], [1.0, 2.0]], ShapeError),
        ([1.0, np.nan], NonFiniteError),
        ([np.inf], NonFiniteError),
        ([1.0, None], NonFiniteError),
        ([1.7e308, -1.7e308], NonFiniteError),
    ],
)
def test_values_without_a_summary_are_refused(values, error):
    with pytest.raises(error, match="values"):
        reference.seed_summary(values)

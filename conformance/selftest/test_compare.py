"""The comparer and its table. Clauses: ACC-1, ACC-2, ACC-3."""

import re

import numpy as np
import pytest

from conformance.agreement import adapter_change, adapter_gradients, projection, projection_gradient
from conformance.clauses import SPEC
from conformance.compare import (
    Measurement,
    ToleranceError,
    assert_at_most,
    assert_close,
    assert_within,
    is_resolvable,
    observers,
)
from conformance.selftest.port import NumpyPort
from conformance.strategies import Adapter, Logits
from conformance.tolerances import TOLERANCES, Tolerance, as_markdown, tolerance_for
from reference.errors import ConfigError, CRMAError

EPS = float(np.finfo(np.float32).eps)
ROW = Tolerance("float32", 4, 0.0, 1e-6, "for this test")


def close(actual, expected, tolerance=ROW, scale=1.0):
    assert_close(actual, expected, tolerance, clause="ACC-1", scale=scale, context="seed 7")


@pytest.mark.clause("ACC-1")
@pytest.mark.parametrize(
    ("tolerance", "scale", "expected", "allowed"),
    [
        (ROW, 1.0, 100.0, 400 * EPS),  # ulps times eps times |e|
        (Tolerance("float32", 4, 1e-3, 1e-6, ""), 1.0, 100.0, 0.1),  # rtol is larger than that
        (Tolerance("float32", 4, 1e-9, 1e-6, ""), 1.0, 100.0, 400 * EPS),  # and here smaller
        (ROW, 1.0, 0.01, 1e-6),  # atol
        (ROW, 50.0, 0.01, 5e-5),  # atol times scale
        (Tolerance("float64", 4, 0.0, 0.0, ""), 1.0, 100.0, 400 * np.finfo(np.float64).eps),
    ],
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_formula(tolerance, scale, expected, allowed, sign):
    close([sign * (expected + 0.9 * allowed)], [sign * expected], tolerance, scale)
    close([sign * (expected - 0.9 * allowed)], [sign * expected], tolerance, scale)
    for direction in (1.1, -1.1):
        with pytest.raises(AssertionError, match="too far from the reference"):
            close([sign * (expected + direction * allowed)], [sign * expected], tolerance, scale)


@pytest.mark.clause("ACC-2")
@pytest.mark.parametrize("largest", [1e-7, 1e-6, 3.9e-6])
def test_tolerance_that_zeros_would_pass_is_refused(largest):
    """Even for the right result."""
    expected = np.asarray([0.0, -largest])
    with pytest.raises(ToleranceError, match="quarter of the largest expected value"):
        close(expected, expected)
    assert not is_resolvable(expected, ROW)
    close(expected, expected, scale=0.01)


@pytest.mark.clause("ACC-2")
def test_relative_tolerance_that_zeros_would_pass_is_refused():
    with pytest.raises(ToleranceError):
        close([1.0], [1.0], Tolerance("float32", 0, 1.0, 0.0, ""))


@pytest.mark.clause("ACC-2")
def test_scale_is_judged_element_by_element():
    """One token of a batch that can be told from zero is enough, and it is the one that zeros fail on."""
    expected, scale = np.asarray([[1e-3], [1.0]]), np.asarray([[1e3], [1.0]])
    close(expected, expected, scale=scale)
    with pytest.raises(AssertionError, match=r"worst at \(1, 0\)"):
        close(np.zeros((2, 1)), expected, scale=scale)


@pytest.mark.clause("ACC-2")
def test_expected_zeros_ask_for_zeros():
    close([0.0, 1e-6], [0.0, 0.0])
    with pytest.raises(AssertionError):
        close([0.0, 1.1e-6], [0.0, 0.0])


@pytest.mark.clause("ACC-1")
@pytest.mark.parametrize(
    ("actual", "expected", "message"),
    [
        ([1.0], [[1.0]], r"got \(1,\)"),
        ([1.0, 1.0], [1.0], r"got \(2,\)"),
        (1.0, [1.0], r"got \(\)"),
        ([np.nan, 1.0], [1.0, 1.0], "1 non-finite of 2"),
        ([1.0], [np.nan], "expected value"),
        ([np.nan], [np.nan], "actual value"),
        ([np.inf], [np.inf], "expected value"),
    ],
)
def test_arrays_that_cannot_be_compared_are_refused(actual, expected, message):
    for function in (assert_close, assert_within):
        with pytest.raises(ToleranceError, match=message):
            function(actual, expected, ROW, clause="ACC-1", context="seed 7")


@pytest.mark.clause("ACC-1")
def test_bounds_hold_up_to_the_tolerance():
    assert_at_most([0.2, 1.0 + 0.9e-6], [0.5, 1.0], ROW, clause="ACC-1")
    assert_at_most([0.0, 5.0], 5.0, ROW, clause="ACC-1")
    with pytest.raises(AssertionError, match=r"worst at \(1,\)"):
        assert_at_most([0.2, 1.0 + 1.2e-6], 1.0, ROW, clause="ACC-1")
    with pytest.raises(ToleranceError):
        assert_at_most([np.nan], 1.0, ROW, clause="ACC-1")


@pytest.mark.clause("ACC-1", "CONF-1")
def test_every_comparison_is_told_to_the_observers():
    """The report of a run is made from what they hear: what was reached, what was allowed, and where."""
    heard: list[Measurement] = []
    hear = heard.append
    observers.append(hear)
    try:
        close([1.0, 2.0 + 5e-7], [1.0, 2.0])
        with pytest.raises(AssertionError):
            close([3.0], [1.0])
    finally:
        observers.remove(hear)
    assert [found.index for found in heard] == [(1,), (0,)]
    assert heard[0].share == pytest.approx(0.5, rel=1e-6)
    assert (heard[1].actual, heard[1].expected, heard[1].error) == (3.0, 1.0, 2.0)
    assert heard[1].share > 1e6


@pytest.mark.clause("ACC-1")
def test_infinity_is_too_far():
    with pytest.raises(AssertionError, match="too far"):
        close([np.inf], [1.0])


@pytest.mark.clause("ACC-1", "CONF-6")
def test_message_names_what_is_needed_to_find_the_fault():
    with pytest.raises(AssertionError) as caught:
        close([[1.0, 2.0], [3.0, 4.5]], [[1.0, 2.0], [3.0, 4.0]])
    clause = "clause: One formula for every comparison"
    for part in ("ACC-1", clause, "1 of 4", "(1, 1)", "actual 4.5", "expected 4.0", "ulp", "for this test", "seed 7"):
        assert part in str(caught.value)


@pytest.mark.clause("ERR-1")
def test_refusal_is_one_of_the_project_s_errors():
    assert issubclass(ToleranceError, CRMAError)
    with pytest.raises(ConfigError, match="dtypes have no row"):
        tolerance_for("adapter x", np.int32, "gradient")


@pytest.mark.clause("ACC-3")
def test_table_is_complete_and_every_row_says_why():
    rows = as_markdown().splitlines()
    assert len(rows) == len(TOLERANCES) + 2
    for (operation, dtype, direction), row in TOLERANCES.items():
        assert row.dtype == dtype
        assert row.atol > 0
        assert len(row.reason) > 20
        assert any(line.startswith(f"| {operation} | {direction} | {dtype} |") for line in rows)


@pytest.mark.clause("ACC-3")
def test_the_table_in_the_specification_is_this_one():
    page = (SPEC / "70-accuracy.md").read_text(encoding="utf-8")
    printed = re.search(r"<!-- tolerances:begin -->(.*)<!-- tolerances:end -->", page, re.DOTALL)
    assert printed
    assert printed[1].strip() == as_markdown().strip()


@pytest.mark.clause("ACC-3")
def test_tolerances_are_near_the_measured_floor():
    """A row is neither below the noise of a simple float32 port nor so far above it that a fault could hide."""
    port, rng = NumpyPort(), np.random.default_rng(11)
    worst: dict[str, float] = {}
    for _ in range(600):
        lattice = rng.random() < 0.5
        kind, magnitude = ("lattice", 4096.0) if lattice else ("normal", float(rng.choice((0.1, 1.0, 5.0))))
        logits = Logits(kind, magnitude, int(rng.integers(2, 9)), (), int(rng.integers(2**32)))
        gate = float(np.float32(rng.uniform(-12, 12)))
        case = Adapter(logits, int(rng.integers(1, 5)), 1, (2, 3), gate, 1.0, 1.0, False, int(rng.integers(2**32)))
        cotangent = rng.standard_normal(logits.values.shape).astype(np.float32)
        compared = {
            f"adapter {name}": c for name, c in adapter_gradients(port, case, 3).items() if name != "mix_logits"
        }
        compared["sinkhorn_projection"] = projection(port, logits, 20)
        compared["adapter y - x"] = adapter_change(port, case, 20)
        if not lattice:  # ties of a lattice are kinks
            compared["gradient"] = projection_gradient(port, logits, cotangent, 20)
        for operation, (actual, expected, scale) in compared.items():
            row = "sinkhorn_projection" if operation == "gradient" else operation
            direction = "forward" if operation in ("sinkhorn_projection", "adapter y - x") else "gradient"
            error = np.abs(actual - expected) / (scale * tolerance_for(row, np.float32, direction).atol)
            worst[operation] = max(worst.get(operation, 0.0), float(error.max()))
    assert all(0.01 < ratio < 0.6 for ratio in worst.values()), worst

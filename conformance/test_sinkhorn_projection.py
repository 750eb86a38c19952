"""Sinkhorn projection: agreement with the reference, and the invariants at every magnitude. Clauses: SINK-1..SINK-9."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import reference
from conformance.agreement import assert_agrees, assert_sums_to_one, fails_or_all_nan, projection
from conformance.compare import assert_close
from conformance.strategies import (
    ITERATIONS,
    SEEDS,
    Logits,
    comparable_logits,
    every_logits,
    lattice_logits,
)
from conformance.tolerances import tolerance_for

ROW = ("sinkhorn_projection", "forward")


def projected(backend, logits, iterations):
    return np.asarray(backend.sinkhorn_projection(logits.astype(backend.parameter_dtype), iterations))


@pytest.mark.clause("SINK-1", "SINK-3", "SINK-4", "ACC-1")
@given(case=comparable_logits(), iterations=ITERATIONS)
def test_agrees_with_the_reference(backend, case, iterations):
    assert_agrees(projection(backend, case, iterations), ROW, backend, "SINK-4", (case, iterations))


@pytest.mark.clause("SINK-1")
@given(case=comparable_logits(leading=((3,), (2, 3)), magnitudes=(1.0, 5.0)), iterations=ITERATIONS)
def test_each_matrix_of_a_batch_is_projected_on_its_own(backend, case, iterations):
    """Matrix by matrix, what the port makes of it alone: no leading axis is mixed up with another."""
    together = projected(backend, case.values, iterations)
    tolerance = tolerance_for(*ROW[:1], backend.parameter_dtype, "forward")
    for index in np.ndindex(case.leading):
        alone, context = projected(backend, case.values[index], iterations), (case, iterations, index)
        assert_close(together[index], alone, tolerance, clause="SINK-1", scale=case.condition, context=context)


@pytest.mark.clause("SINK-3")
@pytest.mark.parametrize("iterations", [1, 3])
@given(case=comparable_logits(n=range(2, 7), leading=((),), magnitudes=(0.5, 1.0, 3.0)))
def test_rows_then_columns_exactly_k_times(backend, iterations, case):
    """At small K another order, or one iteration more or less, is another matrix."""
    expected = reference.sinkhorn_projection(case.values, iterations)
    columns_first = reference.sinkhorn_projection(case.values.T, iterations).T
    one_more = reference.sinkhorn_projection(case.values, iterations + 1)
    assume(all(np.abs(expected - other).max() > 1e-3 for other in (columns_first, one_more)))
    assert_agrees(projection(backend, case, iterations), ROW, backend, "SINK-3", (case, iterations))


@pytest.mark.clause("SINK-5", "SINK-7")
@given(case=every_logits(), iterations=ITERATIONS)
def test_doubly_stochastic_at_every_magnitude(backend, case, iterations):
    mixing = projected(backend, case.values, iterations)
    assert mixing.shape == case.values.shape
    assert not np.isnan(mixing).any(), f"SINK-5: NaN for {case}"
    assert (mixing >= 0).all(), f"SINK-7: smallest entry {mixing.min()} for {case}"
    assert_sums_to_one(backend, mixing, "SINK-5", (case, iterations))


@pytest.mark.clause("SINK-5")
@pytest.mark.parametrize("n", [4, 8, 12, 16])
def test_sums_hold_where_roundings_line_up(backend, n):
    """In multiples of the identity n - 1 entries of a row are rounded alike: float32 sums miss 5e-7 from n = 10 on."""
    logits = np.linspace(0.0, 12.0, 51)[:, None, None] * np.eye(n)
    assert_sums_to_one(backend, projected(backend, logits.astype(np.float32), 20), "SINK-5", n)


@pytest.mark.clause("SINK-5", "SINK-6")
@given(case=every_logits(), iterations=ITERATIONS)
def test_spectral_norm_is_one(backend, case, iterations):
    """Between ||M 1|| / sqrt(n) and sqrt(||M||_1 ||M||_inf): an SVD in float64 rounds by more than a port may."""
    mixing = projected(backend, case.values, iterations).astype(np.longdouble)
    rows, columns = np.abs(mixing).sum(axis=-1), np.abs(mixing).sum(axis=-2)
    at_least = np.sqrt((mixing.sum(axis=-1) ** 2).mean(axis=-1))
    at_most = np.sqrt(rows.max(axis=-1) * columns.max(axis=-1))
    tolerance = tolerance_for("spectral norm", backend.parameter_dtype, "forward")
    context, scale = (case, iterations), max(1, case.n / 16)
    for bound in (at_least, at_most):
        assert_close(bound, np.ones(bound.shape), tolerance, clause="SINK-6", scale=scale, context=context)


@pytest.mark.clause("SINK-8")
@given(case=comparable_logits(leading=((),), magnitudes=(1.0, 5.0, 50.0)), iterations=ITERATIONS, seed=SEEDS)
def test_equivariant_under_row_and_column_permutations(backend, case, iterations, seed):
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(case.n), rng.permutation(case.n)
    actual = projected(backend, case.values[rows][:, columns], iterations)
    expected = projected(backend, case.values, iterations)[rows][:, columns]
    tolerance = tolerance_for(*ROW[:1], backend.parameter_dtype, "forward")
    assert_close(actual, expected, tolerance, clause="SINK-8", scale=case.condition, context=(case, rows, columns))


@pytest.mark.clause("SINK-8")
@given(case=lattice_logits(), iterations=ITERATIONS, steps=st.integers(-100, 100))
def test_invariant_to_an_added_constant(backend, case, iterations, steps):
    """On the lattice the sum is exact in float32, so the same matrix must come back."""
    moved = case.values + np.float32(steps * case.magnitude)
    tolerance = tolerance_for(*ROW[:1], backend.parameter_dtype, "forward")
    expected = projected(backend, case.values, iterations)
    assert_close(projected(backend, moved, iterations), expected, tolerance, clause="SINK-8", context=(case, steps))


@pytest.mark.clause("SINK-9")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@given(case=comparable_logits(n=range(1, 6), leading=((), (3,))), iterations=ITERATIONS, seed=SEEDS)
def test_non_finite_logits_never_give_finite_values(backend, bad, case, iterations, seed):
    rng = np.random.default_rng(seed)
    logits = case.values.astype(backend.parameter_dtype)
    index = tuple(int(rng.integers(size)) for size in logits.shape)
    logits[index] = bad
    cotangent = rng.standard_normal(logits.shape).astype(logits.dtype)
    matrix = index[:-2]  # the other matrices of the batch may be as they are
    context = (case, iterations, index, bad)
    assert fails_or_all_nan(lambda: backend.sinkhorn_projection(logits, iterations)[matrix]), context
    assert fails_or_all_nan(lambda: backend.sinkhorn_projection_vjp(logits, cotangent, iterations)[matrix]), context


@pytest.mark.clause("SINK-4", "SINK-5")
@pytest.mark.parametrize("n", [2, 4])
def test_plain_sinkhorn_would_break_the_bound(backend, n):
    """The case for the correction: at K = 1 the steps alone leave a row sum far from 1, and a port must not."""
    case = Logits("triangular", 20.0, n, (), 1)
    tolerance = tolerance_for("row and column sums", backend.parameter_dtype, "forward")
    weights = np.exp(case.values.astype(np.float64) - case.values.max(axis=-1, keepdims=True))
    rows_normalised = weights / weights.sum(axis=-1, keepdims=True)
    plain = rows_normalised / rows_normalised.sum(axis=-2, keepdims=True)
    assert np.abs(plain.sum(axis=-1) - 1).max() > 0.1
    sums = projected(backend, case.values, 1).astype(np.float64).sum(axis=-1)
    assert_close(sums, np.ones(n), tolerance, clause="SINK-4", context=case)


@pytest.mark.clause("SINK-5")
@given(first=every_logits((2, 3, 16)), seed=SEEDS)
def test_products_stay_doubly_stochastic(backend, first, seed):
    """Composed over layers nothing accumulates but rounding: 24 matrices, each off by at most one row's tolerance."""
    case = Logits(first.kind, first.magnitude, first.n, (24,), seed)
    product = np.linalg.multi_dot([*projected(backend, case.values, 20).astype(np.float64)])
    assert_sums_to_one(backend, product, "SINK-5", case, layers=24)

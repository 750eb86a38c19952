"""Sizes beyond one block of a kernel, and more iterations than are unrolled. Clauses: SINK-1, SINK-2, MIX-1, GRAD-7."""

from __future__ import annotations

import numpy as np
import pytest

import reference
from conformance.agreement import (
    INPUTS,
    adapter_change,
    adapter_gradients,
    assert_agrees,
    projection,
    projection_gradient,
)
from conformance.strategies import Adapter, Logits

MANY = 1030  # more than 1024, and no multiple of anything that a block may be as large as


@pytest.mark.clause("MIX-1", "MIX-2", "GRAD-7")
@pytest.mark.parametrize("leading", [(MANY,), (2, 5, 103)])
def test_every_token_of_a_large_batch_counts(backend, leading):
    """Each is mixed, and the gradient of the parameters is the sum over all of them."""
    case = Adapter(Logits("normal", 0.5, 3, (), 3), 2, 1, leading, 1.0, 1.0, 1.0, False, 4)
    assert_agrees(adapter_change(backend, case, 20), ("adapter y - x", "forward"), backend, "MIX-2", case)
    for name, comparison in adapter_gradients(backend, case, 20).items():
        assert name in INPUTS
        assert_agrees(comparison, (f"adapter {name}", "gradient"), backend, "GRAD-7", (name, case))


@pytest.mark.clause("SINK-1", "GRAD-1")
@pytest.mark.parametrize("leading", [(MANY,), (2, 5, 103)])
def test_every_matrix_of_a_large_batch_is_projected(backend, leading):
    case = Logits("normal", 0.5, 3, leading, 5)  # converged at K = 20, so that no kink is near
    cotangent = np.random.default_rng(6).standard_normal(case.values.shape).astype(np.float32)
    assert_agrees(projection(backend, case, 20), ("sinkhorn_projection", "forward"), backend, "SINK-1", case)
    comparison = projection_gradient(backend, case, cotangent, 20)
    assert_agrees(comparison, ("sinkhorn_projection", "gradient"), backend, "GRAD-1", case)


@pytest.mark.clause("SINK-2", "SINK-3", "GRAD-1")
@pytest.mark.parametrize("iterations", [21, 64, 100])
def test_iterations_have_no_upper_limit(backend, iterations):
    """A matrix that converges so slowly that the 21st iteration still moves it, and so does the 100th."""
    case = Logits("triangular", 4.0, 5, (), 7)
    cotangent = np.random.default_rng(8).standard_normal(case.values.shape).astype(np.float32)
    moved = np.abs(np.diff([reference.sinkhorn_projection(case.values, k) for k in (20, iterations)], axis=0))
    assert moved.max() > 1e-3
    assert_agrees(projection(backend, case, iterations), ("sinkhorn_projection", "forward"), backend, "SINK-3", case)
    comparison = projection_gradient(backend, case, cotangent, iterations)
    assert_agrees(comparison, ("sinkhorn_projection", "gradient"), backend, "GRAD-1", (case, iterations))


@pytest.mark.clause("SINK-1", "SINK-3", "SINK-4", "GRAD-1")
@pytest.mark.parametrize("n", range(1, 65))
def test_every_number_of_streams(backend, n):
    """Each from 1 to 64, since a kernel may be written for a few of them."""
    case = Logits("normal", 0.5, n, (), n)
    cotangent = np.random.default_rng(n).standard_normal((n, n)).astype(np.float32)
    assert_agrees(projection(backend, case, 5), ("sinkhorn_projection", "forward"), backend, "SINK-1", case)
    comparison = projection_gradient(backend, case, cotangent, 5)
    assert_agrees(comparison, ("sinkhorn_projection", "gradient"), backend, "GRAD-1", case)


@pytest.mark.clause("MIX-1", "MIX-2", "GRAD-7")
@pytest.mark.parametrize(
    ("n", "rank", "spare"), [(1, 16, 3), (2, 5, 1), (3, 8, 0), (4, 16, 16), (5, 7, 1), (2, 2, 1030), (3, 1, 4097)]
)
def test_other_widths_than_the_usual(backend, n, rank, spare):
    """Ranks that are no power of two, and hidden sizes beyond a block of any kernel."""
    case = Adapter(Logits("normal", 0.5, n, (), 3), rank, spare, (3,), 1.0, 1.0, 1.0, True, 4)
    assert_agrees(adapter_change(backend, case, 20), ("adapter y - x", "forward"), backend, "MIX-2", case)
    for name, comparison in adapter_gradients(backend, case, 20).items():
        assert_agrees(comparison, (f"adapter {name}", "gradient"), backend, "GRAD-7", (name, case))

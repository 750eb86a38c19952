"""Residual mixing: the bounds of Theorem 2, and what mixing leaves as it was. Clauses: MIX-7..MIX-9."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given

from conformance.agreement import adapter_output, assert_near, inputs_of
from conformance.compare import assert_at_most
from conformance.strategies import (
    ITERATIONS,
    OPEN_GATES,
    SEEDS,
    SEVERAL_STREAMS,
    STREAMS,
    Logits,
    adapters,
    every_logits,
    lattice_logits,
)
from conformance.tolerances import tolerance_for
from reference.adapter import sigmoid


@pytest.mark.clause("MIX-7")
@given(case=adapters(every_logits(STREAMS, ((),))), iterations=ITERATIONS)
def test_non_expansive_at_every_magnitude(backend, case, iterations):
    """The whole linear map, read off the unit vectors; its norm by SVD in float64."""
    transposed_map = adapter_output(backend, case, iterations, np.eye(case.hidden_size))
    assert not np.isnan(transposed_map).any()
    tolerance = tolerance_for("non-expansive", backend.parameter_dtype, "forward")
    norm = np.linalg.norm(transposed_map, 2)
    assert_at_most(norm, 1.0, tolerance, clause="MIX-7", context=(case, iterations))


@pytest.mark.clause("MIX-7")
@given(case=adapters(), iterations=ITERATIONS, seed=SEEDS)
def test_one_lipschitz(backend, case, iterations, seed):
    other = (case.x + case.x_scale * np.random.default_rng(seed).standard_normal(case.x.shape)).astype(np.float32)
    before = np.linalg.norm(np.float64(other) - np.float64(case.x), axis=-1)
    after = np.linalg.norm(
        adapter_output(backend, case, iterations, other) - adapter_output(backend, case, iterations), axis=-1
    )
    size = np.linalg.norm(np.float64(other), axis=-1) + np.linalg.norm(np.float64(case.x), axis=-1)
    tolerance = tolerance_for("non-expansive", backend.parameter_dtype, "forward")
    assert_at_most(after, before, tolerance, clause="MIX-7", scale=size, context=(case, iterations, seed))


@pytest.mark.clause("MIX-8")
@given(case=adapters(every_logits(STREAMS, ((),))), iterations=ITERATIONS)
def test_near_identity_bound(backend, case, iterations):
    size = np.linalg.norm(np.float64(case.x), axis=-1)
    change = np.linalg.norm(adapter_output(backend, case, iterations) - np.float64(case.x), axis=-1)
    tolerance, limit = tolerance_for("non-expansive", backend.parameter_dtype, "forward"), 2.0 * sigmoid(case.gate)
    assert_at_most(change, limit * size, tolerance, clause="MIX-8", scale=size, context=(case, iterations))


@pytest.mark.clause("MIX-8")
@given(case=adapters(lattice_logits(STREAMS, leading=((),)), gates=OPEN_GATES), iterations=ITERATIONS)
def test_identity_when_m_is_the_identity(backend, case, iterations):
    identity = replace(case, logits=_Diagonal("lattice", 1024.0, case.logits.n, (), 0))
    size = np.linalg.norm(np.float64(case.x), axis=-1, keepdims=True)
    assert_near(backend, adapter_output(backend, identity, iterations), np.float64(case.x), "MIX-8", size, case)


@pytest.mark.clause("MIX-9")
@given(case=adapters(SEVERAL_STREAMS, gates=OPEN_GATES))
def test_conserves_the_sum_of_the_streams(backend, case):
    """Read off with the basis' dual, so that the basis need not be orthonormal."""
    flat = np.float64(case.basis).reshape(-1, case.hidden_size)
    coefficients = (adapter_output(backend, case, 20) - np.float64(case.x)) @ np.linalg.pinv(flat)
    total = coefficients.reshape(*case.leading, case.logits.n, case.rank).sum(axis=-2)
    singular_values = np.linalg.svd(flat, compute_uv=False)
    assume(singular_values[0] < 30 * singular_values[-1])
    size = np.linalg.norm(np.float64(case.x), axis=-1, keepdims=True) * np.sqrt(flat.size) / singular_values[-1]
    assert_near(backend, total, 0.0, "MIX-9", size, case)


@pytest.mark.clause("MIX-9")
@given(case=adapters(SEVERAL_STREAMS, gates=OPEN_GATES), seed=SEEDS)
def test_equal_streams_are_left_alone(backend, case, seed):
    flat = np.float64(case.basis).reshape(-1, case.hidden_size)
    equal = np.tile(np.random.default_rng(seed).standard_normal((*case.leading, case.rank)), case.logits.n)
    x = np.asarray((equal @ np.linalg.pinv(flat).T) * np.linalg.norm(flat, 2), backend.parameter_dtype)
    size = np.linalg.norm(np.float64(x), axis=-1, keepdims=True)
    assert (size > 0).all()
    assert_near(backend, adapter_output(backend, case, 20, x), np.float64(x), "MIX-9", size, case)


@pytest.mark.clause("MIX-9")
@given(case=adapters(SEVERAL_STREAMS, gates=OPEN_GATES).filter(lambda a: a.spare == 9))
def test_what_is_orthogonal_to_the_basis_passes_through(backend, case):
    span = np.linalg.qr(np.float64(case.basis).reshape(-1, case.hidden_size).T)[0]
    x = np.asarray(np.float64(case.x) - np.float64(case.x) @ span @ span.T, backend.parameter_dtype)
    size = np.linalg.norm(np.float64(x), axis=-1, keepdims=True)
    assert_near(backend, adapter_output(backend, case, 20, x), np.float64(x), "MIX-9", size, case)


@pytest.mark.clause("MIX-9")
@given(case=adapters(SEVERAL_STREAMS, gates=OPEN_GATES), iterations=ITERATIONS, seed=SEEDS)
def test_equivariant_under_a_permutation_of_the_streams(backend, case, iterations, seed):
    order = np.random.default_rng(seed).permutation(case.logits.n)
    x, logits, gate, basis = inputs_of(backend, case)
    y = backend.adapter_forward(x, logits[order][:, order], gate, basis[order], iterations)
    size = np.linalg.norm(np.float64(case.x), axis=-1, keepdims=True) * case.logits.condition
    assert_near(backend, np.float64(y), adapter_output(backend, case, iterations), "MIX-9", size, (case, order))


class _Diagonal(Logits):
    """Logits whose projection is the identity, to the last bit."""

    @property
    def values(self):
        return np.float32(self.magnitude * (np.eye(self.n) - 1.0))

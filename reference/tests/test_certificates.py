"""Certificates of the reference, against the dense d x d maps. Clauses: CERT-1, CERT-2."""

import numpy as np
import pytest
from hypothesis import given

import reference
from conformance.agreement import parameters_of
from conformance.strategies import ITERATIONS, SEEDS, adapters
from reference.errors import CRMAError


def dense_map(case, iterations):
    """G, (d, d): column k is the image of unit vector k."""
    return reference.adapter_forward(np.eye(case.hidden_size), parameters_of(case), iterations).T


@pytest.mark.clause("CERT-1", "MIX-7")
@given(case=adapters(), iterations=ITERATIONS)
def test_adapter_spectrum_is_that_of_the_dense_map(case, iterations):
    singular_values = np.linalg.svd(dense_map(case, iterations), compute_uv=False)
    largest, smallest = reference.adapter_spectrum(parameters_of(case), iterations)
    assert largest == pytest.approx(singular_values[0], abs=1e-12)
    assert smallest == pytest.approx(singular_values[-1], abs=1e-12)
    assert largest <= 1 + 1e-12


@pytest.mark.clause("CERT-1", "CERT-2", "STATE-1")
@given(case=adapters(), iterations=ITERATIONS)
def test_float32_states_are_certified_in_float64(case, iterations):
    """A state file holds float32; its certificate is that of the same values, without another rounding."""
    stored = reference.AdapterParameters(case.mix_logits, case.gate_logit, case.basis)
    widened = parameters_of(case)
    expected = reference.adapter_spectrum(widened, iterations)
    assert reference.adapter_spectrum(stored, iterations) == pytest.approx(expected, abs=1e-14)
    assert reference.displacement(stored, widened, iterations) <= 1e-12


@pytest.mark.clause("CERT-2")
@given(first=adapters(), second=adapters(), iterations=ITERATIONS, seed=SEEDS)
def test_displacement_is_the_norm_of_the_dense_difference(first, second, iterations, seed):
    """Two states of different streams and ranks, and (``near``) one that has moved a little, as in training."""
    size = max(first.hidden_size, second.hidden_size)
    states = [padded(case, size) for case in (first, second)]
    dense = [reference.adapter_forward(np.eye(size), state, iterations) for state in states]
    expected = np.linalg.norm(dense[0] - dense[1], 2)
    assert reference.displacement(states[0], states[1], iterations) == pytest.approx(expected, abs=1e-12)
    rng = np.random.default_rng(seed)
    near = reference.AdapterParameters(
        *(a + 1e-3 * rng.standard_normal(np.shape(a)) * np.abs(a).max() for a in states[0])
    )
    expected = np.linalg.norm(dense[0] - reference.adapter_forward(np.eye(size), near, iterations), 2)
    assert reference.displacement(states[0], near, iterations) == pytest.approx(expected, abs=1e-12)
    assert reference.displacement(states[0], states[0], iterations) <= 1e-12


@pytest.mark.clause("CERT-2")
def test_displacement_of_a_known_pair():
    """An exchange of two streams, against the identity: ``alpha ||M - I|| = 2 alpha``."""
    exchange, identity = 64.0 * np.asarray([[0, 1], [1, 0]]), 64.0 * np.eye(2)
    states = [reference.AdapterParameters(s, np.asarray(0.0), np.eye(2)[:, None, :]) for s in (exchange, identity)]
    alpha = 0.5 / 2**0.125
    assert reference.displacement(states[0], states[1]) == pytest.approx(2 * alpha, rel=1e-12)
    assert reference.adapter_spectrum(states[0]) == pytest.approx((1.0, abs(1 - 2 * alpha)), abs=1e-12)


@pytest.mark.clause("CERT-1", "CERT-2", "MIX-4", "MIX-11", "ERR-1")
@pytest.mark.parametrize("wrong", [{"gate_logit": np.nan}, {"gate_logit": np.zeros(4)}, {"basis": np.zeros((4, 4))}])
def test_states_that_are_no_adapter_have_no_certificate(wrong):
    good, larger = (reference.init_parameters(reference.AdapterConfig(d), 0) for d in (16, 17))
    bad = good._replace(**{key: np.asarray(value) for key, value in wrong.items()})
    for call in (reference.adapter_spectrum, lambda state: reference.displacement(good, state)):
        with pytest.raises(CRMAError):
            call(bad)
    with pytest.raises(CRMAError, match="hidden sizes 16 and 17"):
        reference.displacement(good, larger)


def padded(case, size):
    """The parameters in a larger residual stream."""
    basis = np.zeros((case.logits.n, case.rank, size))
    basis[..., : case.hidden_size] = case.basis
    return parameters_of(case)._replace(basis=basis)

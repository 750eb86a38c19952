"""The displacement budget of the reference, measured on the dense d x d maps. Clauses: BUDGET-1, BUDGET-2, BUDGET-3."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from reference.displacement_budget import BISECTIONS
from reference.errors import ConfigError, DegenerateBasisError, NonFiniteError, ShapeError

ITERATIONS = st.sampled_from((1, 3, 20))
BUDGETS = st.sampled_from((1e-6, 1e-3, 0.03, 0.3))
STEP = 2.0**-BISECTIONS


class Pair(NamedTuple):
    """An anchor and a state that has moved away from it, in all three parameters."""

    anchor: reference.AdapterParameters
    moved: reference.AdapterParameters


def pair(n, r, spare, move, seed):
    rng = np.random.default_rng(seed)
    config = reference.AdapterConfig(n * r + spare, n, r)
    anchor = reference.init_parameters(config, rng, gate_logit=rng.normal(0.0, 2.0))
    moved = (value + move * rng.standard_normal(value.shape) for value in anchor)
    return Pair(anchor, reference.AdapterParameters(*(np.asarray(value) for value in moved)))


GOOD = pair(2, 2, 1, 0.0, 10).anchor
PAIRS = st.builds(
    pair,
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from((0, 1, 7)),
    st.sampled_from((0.0, 1e-5, 0.01, 0.5, 5.0)),
    st.integers(0, 2**32 - 1),
)


def distance(first, second, iterations):
    """``||G_first - G_second||_2`` from the images of the unit vectors, not by the formula of CERT-2."""
    units = np.eye(first.basis.shape[-1])
    maps = [reference.adapter_forward(units, state, iterations) for state in (first, second)]
    return np.linalg.norm(maps[0] - maps[1], 2)


def at(states, fraction):
    return reference.AdapterParameters(
        *(a + fraction * (b - a) for a, b in zip(states.anchor, states.moved, strict=True))
    )


def rounded_to_float32(state):
    return reference.AdapterParameters(*(value.astype(np.float32).astype(np.float64) for value in state))


@pytest.mark.clause("BUDGET-1", "BUDGET-2")
@given(states=PAIRS, delta=BUDGETS, iterations=ITERATIONS)
def test_limited_state_is_within_delta_of_the_anchor_and_no_further_back_than_needed(states, delta, iterations):
    """All parameters go the same fraction of the straight segment. Returning the anchor would keep any budget, so a
    limited state must lie beside one that does not keep it."""
    limited, fraction = reference.limit_displacement(states.anchor, states.moved, delta, iterations)
    assert reference.displacement(states.anchor, limited, iterations) <= delta
    assert distance(states.anchor, limited, iterations) <= delta + 1e-12
    assert 0.0 <= fraction <= 1.0
    for got, expected in zip(limited, at(states, fraction), strict=True):
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-15, atol=1e-15)
    if fraction < 1.0:
        assert distance(states.anchor, at(states, fraction + STEP), iterations) > delta - 1e-12
    else:
        assert distance(states.anchor, states.moved, iterations) <= delta + 1e-12


@pytest.mark.clause("BUDGET-1")
@given(states=PAIRS, delta=BUDGETS, iterations=ITERATIONS)
def test_limited_and_rounded_to_float32_it_stays_within_delta_and_1e_6(states, delta, iterations):
    anchor = rounded_to_float32(states.anchor)
    limited, _ = reference.limit_displacement(anchor, states.moved, delta, iterations)
    assert distance(anchor, rounded_to_float32(limited), iterations) <= delta + 1e-6


@pytest.mark.clause("BUDGET-2")
@given(states=PAIRS, iterations=ITERATIONS)
def test_within_the_budget_no_bit_changes(states, iterations):
    delta = reference.displacement(states.anchor, states.moved, iterations) or 1e-9
    for budget in (delta, 2.0 * delta, np.inf):
        limited, fraction = reference.limit_displacement(states.anchor, states.moved, budget, iterations)
        assert fraction == 1.0
        assert all(a.tobytes() == b.tobytes() for a, b in zip(limited, states.moved, strict=True))


@pytest.mark.clause("BUDGET-1", "CERT-2")
@given(states=PAIRS, delta=BUDGETS, seed=st.integers(0, 2**32 - 1))
def test_two_limited_states_are_within_two_delta(states, delta, seed):
    rng = np.random.default_rng(seed)
    other = reference.AdapterParameters(*(value + rng.standard_normal(value.shape) for value in states.anchor))
    kept = [reference.limit_displacement(states.anchor, state, delta, 3)[0] for state in (states.moved, other)]
    assert distance(kept[0], kept[1], 3) <= 2.0 * delta + 1e-12


@pytest.mark.clause("BUDGET-1", "BUDGET-2")
def test_a_basis_of_zeros_on_the_segment_counts_as_outside():
    """A = 0 at t = 1/2, the first point that is tried: the answer lies before it, inside."""
    anchor = pair(3, 2, 4, 0.0, 5).anchor
    states = Pair(anchor, reference.AdapterParameters(anchor.mix_logits, anchor.gate_logit + 4.0, -anchor.basis))
    assert not at(states, 0.5).basis.any()
    limited, fraction = reference.limit_displacement(states.anchor, states.moved, 0.01)
    assert 0.0 < fraction < 0.5
    assert distance(anchor, limited, 20) <= 0.01
    assert distance(anchor, at(states, fraction + STEP), 20) > 0.01


@pytest.mark.clause("BUDGET-1", "BUDGET-2")
def test_a_state_whose_basis_has_vanished_is_pulled_back():
    anchor = pair(3, 2, 4, 0.0, 6).anchor
    limited, fraction = reference.limit_displacement(anchor, anchor._replace(basis=0.0 * anchor.basis), 0.5)
    assert 0.9 < fraction < 1.0, "only its scale had changed, and y does not depend on that"
    assert distance(anchor, limited, 20) <= 1e-9


@pytest.mark.clause("BUDGET-3")
@pytest.mark.parametrize("delta", [0.0, -1.0, -np.inf, np.nan, True, None, "1"])
def test_a_budget_that_is_no_positive_number_is_refused(delta):
    states = pair(2, 2, 1, 0.5, 7)
    before = [value.copy() for value in (*states.anchor, *states.moved)]
    with pytest.raises(ConfigError, match="delta"):
        reference.limit_displacement(states.anchor, states.moved, delta)
    assert all((a == b).all() for a, b in zip(before, (*states.anchor, *states.moved), strict=True))


@pytest.mark.clause("BUDGET-3")
@pytest.mark.parametrize(
    ("anchor", "state", "error", "field"),
    [
        (pair(3, 2, 0, 0.0, 8).anchor, GOOD, ShapeError, "mix_logits"),
        (pair(2, 3, 0, 0.0, 8).anchor, GOOD, ShapeError, "basis"),
        (pair(2, 2, 3, 0.0, 8).anchor, GOOD, ShapeError, "basis"),
        (*[GOOD._replace(gate_logit=np.zeros(2))] * 2, ShapeError, "gate_logit"),
        (GOOD, GOOD._replace(mix_logits=np.full((2, 2), np.nan)), NonFiniteError, "mix_logits"),
        (GOOD, GOOD._replace(basis=np.full(GOOD.basis.shape, np.nan)), NonFiniteError, "basis"),
        (GOOD._replace(basis=0.0 * GOOD.basis), GOOD, DegenerateBasisError, "basis"),
    ],
)
def test_what_are_no_two_states_of_one_layer_is_refused(anchor, state, error, field):
    with pytest.raises(error, match=field):
        reference.limit_displacement(anchor, state, 0.1)

"""The data budget of the reference, measured token by token. Clauses: DATA-1..DATA-5."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from reference import StreamMoment
from reference.displacement_budget import BISECTIONS
from reference.errors import ConfigError, CRMAError, DegenerateBasisError, NonFiniteError, ShapeError
from reference.tests.test_displacement_budget import ITERATIONS, Pair, at, pair, rounded_to_float32

EPSILONS = st.sampled_from((1e-6, 1e-3, 0.03, 0.3))
SEEDS = st.integers(0, 2**32 - 1)


def with_still_basis(states: Pair) -> Pair:
    return Pair(states.anchor, states.moved._replace(basis=states.anchor.basis))


def tokens(states: Pair, count: int, seed: int) -> np.ndarray:
    """Tokens of unlike sizes, some of them within a plane of the basis's span, the second one of zeros."""
    rng = np.random.default_rng(seed)
    d = states.anchor.basis.shape[-1]
    x = rng.standard_normal((count, d)) * 10.0 ** rng.uniform(-3, 3, (count, 1))
    x[::3] = rng.standard_normal((len(x[::3]), 1)) * states.anchor.basis.reshape(-1, d)[0]
    x[1:2] = 0
    return x


def of_tokens(states: Pair, x: np.ndarray, iterations: int) -> float:
    """The definition, from the forward pass."""
    changes = [reference.adapter_forward(x, state, iterations) for state in states]
    norms = np.linalg.norm(x, axis=-1)
    relative = np.linalg.norm(changes[1] - changes[0], axis=-1) / np.where(norms > 0, norms, 1.0)
    return float(np.sqrt(np.mean(relative**2)))


MOVES = st.builds(
    pair,
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from((0, 1, 7)),
    st.sampled_from((0.0, 1e-5, 0.01, 0.5, 5.0)),
    SEEDS,
).map(with_still_basis)
GOOD = with_still_basis(pair(2, 2, 1, 0.5, 10))
MOMENT = reference.stream_moment(tokens(GOOD, 9, 0), GOOD.anchor.basis)


@pytest.mark.clause("DATA-1", "DATA-2")
@given(states=MOVES, count=st.integers(1, 12), iterations=ITERATIONS, seed=SEEDS)
def test_it_is_the_mean_over_tokens_and_never_above_the_worst_case(states, count, iterations, seed):
    x = tokens(states, count, seed)
    moment = reference.stream_moment(x, states.anchor.basis)
    found = reference.data_displacement(states.anchor, states.moved, moment, iterations)
    assert found == pytest.approx(of_tokens(states, x, iterations), rel=1e-6, abs=1e-9)
    assert found <= reference.displacement(states.anchor, states.moved, iterations) + 1e-9
    assert reference.data_displacement(states.anchor, states.anchor, moment, iterations) == 0.0


@pytest.mark.clause("DATA-1")
@given(states=MOVES, counts=st.tuples(st.integers(0, 5), st.integers(1, 5)), seed=SEEDS)
def test_moments_add_up_whatever_the_axes_of_the_tokens(states, counts, seed):
    x = tokens(states, sum(counts), seed)
    whole = reference.stream_moment(x[:, None], states.anchor.basis)
    first, second = (reference.stream_moment(part, states.anchor.basis) for part in np.split(x, [counts[0]]))
    joined = first.joined(second)
    assert joined.tokens == whole.tokens == sum(counts)
    np.testing.assert_allclose(joined.total, whole.total, rtol=1e-12, atol=1e-12)
    flat = states.anchor.basis.reshape(-1, x.shape[1])
    expected = sum(np.outer(flat @ t, flat @ t) / (t @ t) for t in x if t.any())
    np.testing.assert_allclose(whole.total, expected + 0 * whole.total, rtol=1e-9, atol=1e-12)


@pytest.mark.clause("DATA-2")
def test_the_worst_input_sees_the_displacement_and_equal_streams_see_nothing():
    swap, basis = np.array([[-50.0, 50.0], [50.0, -50.0]]), np.eye(2, 6).reshape(2, 1, 6)
    anchor, moved = (reference.AdapterParameters(swap, np.array(gate), basis) for gate in (-2.0, 0.0))
    worst, equal = np.array([[1.0, -1, 0, 0, 0, 0]]), np.array([[1.0, 1, 0, 0, 0, 0]])
    displacement = reference.displacement(anchor, moved)
    for x, expected in (
        (worst, displacement),
        (equal, 0.0),
        (np.eye(6)[5:], 0.0),
        (np.concatenate([worst, equal]), displacement / np.sqrt(2)),
        (np.concatenate([worst, 0 * worst, 0 * worst, 0 * worst]), displacement / 2),
    ):
        moment = reference.stream_moment(x, basis)
        assert reference.data_displacement(anchor, moved, moment) == pytest.approx(expected, abs=1e-12)


@pytest.mark.clause("DATA-3")
@given(states=MOVES, epsilon=EPSILONS, iterations=ITERATIONS, seed=SEEDS)
def test_limited_state_is_within_epsilon_and_no_further_back_than_needed(states, epsilon, iterations, seed):
    x = tokens(states, 8, seed)
    moment = reference.stream_moment(x, states.anchor.basis)
    limited, fraction = reference.limit_data_displacement(states.anchor, states.moved, moment, epsilon, iterations)
    assert of_tokens(Pair(states.anchor, limited), x, iterations) <= epsilon + 1e-9
    assert limited.basis.tobytes() == states.anchor.basis.tobytes()
    for got, expected in zip(limited, at(states, fraction), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-15, atol=1e-15)
    if fraction < 1.0:
        beyond = at(states, fraction + 2.0**-BISECTIONS)
        assert of_tokens(Pair(states.anchor, beyond), x, iterations) > epsilon - 1e-9
    else:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(limited, states.moved, strict=True))
    rounded = rounded_to_float32(states.anchor), rounded_to_float32(limited)
    assert of_tokens(Pair(*rounded), x, iterations) <= epsilon + 1e-6


@pytest.mark.clause("DATA-3")
def test_an_infinite_budget_limits_nothing_and_zeros_keep_their_signs():
    basis = GOOD.anchor.basis.copy()
    basis[0, 0, 0] = -0.0
    anchor, moved = (state._replace(basis=basis) for state in GOOD)
    assert reference.limit_data_displacement(anchor, moved, MOMENT, np.inf)[1] == 1.0
    limited, fraction = reference.limit_data_displacement(anchor, moved, MOMENT, 1e-6)
    assert fraction < 1.0
    assert limited.basis.tobytes() == basis.tobytes()


@pytest.mark.clause("DATA-4")
def test_another_basis_than_the_anchors_is_refused():
    moved = GOOD.moved._replace(basis=np.nextafter(GOOD.moved.basis, 2.0))
    for use in (
        lambda: reference.data_displacement(GOOD.anchor, moved, MOMENT),
        lambda: reference.limit_data_displacement(GOOD.anchor, moved, MOMENT, 0.1),
    ):
        with pytest.raises(ConfigError, match="basis: got another one than the anchor's"):
            use()


@pytest.mark.clause("DATA-5")
@pytest.mark.parametrize("epsilon", [0.0, -1.0, np.nan, True, None, "1"])
def test_a_budget_that_is_no_positive_number_is_refused(epsilon):
    with pytest.raises(ConfigError, match="epsilon"):
        reference.limit_data_displacement(*GOOD, MOMENT, epsilon)


EYE = np.eye(4)
WRONG = {
    "count": (StreamMoment(EYE, 0), ConfigError, "tokens of the moment"),
    "count of floats": (StreamMoment(EYE, 2.0), ConfigError, "tokens of the moment"),  # type: ignore[arg-type]
    "truth": (StreamMoment(EYE, True), ConfigError, "tokens of the moment"),
    "shape": (StreamMoment(np.eye(3), 2), ShapeError, r"moment: got \(3, 3\)"),
    "nan": (StreamMoment(EYE * np.nan, 2), NonFiniteError, "moment"),
    "infinite": (StreamMoment(np.full((4, 4), np.inf), 2), NonFiniteError, "moment"),
    "asymmetric": (StreamMoment(np.triu(np.ones((4, 4))) + 4 * EYE, 2), ConfigError, "mirror images"),
    "negative": (StreamMoment(np.diag([1.0, 1, 1, -0.1]), 2), ConfigError, "eigenvalue of -0.1"),
    "negative throughout": (StreamMoment(-EYE, 2), ConfigError, "eigenvalue of -1"),
}


@pytest.mark.clause("DATA-5")
@pytest.mark.parametrize(("moment", "error", "words"), WRONG.values(), ids=WRONG)
def test_what_is_no_moment_is_refused(moment: StreamMoment, error: type[CRMAError], words: str) -> None:
    for use in (
        lambda: reference.data_displacement(*GOOD, moment),
        lambda: reference.limit_data_displacement(*GOOD, moment, 0.1),
    ):
        with pytest.raises(error, match=words):
            use()


@pytest.mark.clause("DATA-1", "DATA-5", "BUDGET-3")
def test_tokens_and_states_that_do_not_fit_are_refused():
    basis = GOOD.anchor.basis
    for x, a, error in (
        (np.ones((2, 4)), basis, ShapeError),
        (np.ones((2, 5)), basis[0], ShapeError),
        (np.float64(1.0), basis, ShapeError),
        (np.full((2, 5), np.inf), basis, NonFiniteError),
        (np.ones((2, 5)), basis * np.nan, NonFiniteError),
    ):
        with pytest.raises(error):
            reference.stream_moment(x, a)
    with pytest.raises(ShapeError, match="mix_logits"):
        reference.data_displacement(GOOD.anchor, pair(3, 2, 0, 0.0, 8).anchor, MOMENT)
    nothing = GOOD.anchor._replace(basis=0 * basis)
    with pytest.raises(DegenerateBasisError):
        reference.limit_data_displacement(nothing, nothing, MOMENT, 0.1)

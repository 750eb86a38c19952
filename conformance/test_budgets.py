"""Budgets of a port that offers them: how far a state may go from its anchor, for the worst input and for tokens seen.

Clauses: BUDGET-1 to BUDGET-4, DATA-1, DATA-3 to DATA-5.
"""

from functools import partial

import numpy as np
import pytest

import reference
from conformance.agreement import fails, require
from reference import AdapterParameters, StreamMoment, data_displacement, displacement
from reference.errors import DegenerateBasisError

K = 5
ROUNDING = 1e-6  # what BUDGET-1 and DATA-3 allow for rounding what is stored
FURTHER = (2.0**-20, *(part / 8192 for part in range(1, 9)))  # of the way, within which BUDGET-4 wants an outside
#: n, r, d
SIZES = [(2, 1, 4), (3, 2, 9), (4, 4, 64), (16, 2, 40)]
SHARES = [0.9, 0.3, 0.01]  # of how far the state has moved
MOVES = {
    "all": (1, 1, 1),
    "logits": (1, 0, 0),
    "gate": (0, 1, 0),
    "basis": (0, 0, 1),
    "through a basis of zeros": (0, 1, 0),
}
NO_BUDGETS = [0, 0.0, -1.0, float("nan"), float("-inf"), True, None, "1"]


def states_of(backend, sizes, move="all"):
    """An anchor and a state that has moved, each S, gamma and A, in the dtype of the parameters."""
    n, r, d = sizes
    rng = np.random.default_rng(n * d)
    shapes = ((n, n), (), (n, r, d))
    anchor = [np.asarray(rng.standard_normal(shape)) for shape in shapes]
    moved = [np.asarray(a + by * rng.standard_normal(a.shape)) for a, by in zip(anchor, MOVES[move], strict=True)]
    if move == "through a basis of zeros":
        moved[2] = -anchor[2]
    return tuple([np.asarray(array, backend.parameter_dtype) for array in state] for state in (anchor, moved))


def exact(state):
    return AdapterParameters(*(np.asarray(array, np.float64) for array in state))


def assert_limited(found, anchor, moved, measure, budget, clauses):
    """On the segment, inside, and at its edge. ``measure``: of a state, its distance from the anchor."""
    in_budget, on_segment = clauses
    eps = np.finfo(anchor[0].dtype).eps
    start, end = exact(anchor), exact(moved)
    *state, fraction = found
    assert 0 <= fraction < 1, f"{on_segment}: fraction {fraction} of a state that is outside"
    for name, array, a, b in zip(AdapterParameters._fields, state, start, end, strict=True):
        error = np.abs(np.asarray(array, np.float64) - (a + fraction * (b - a)))
        assert (error <= 2 * eps * (np.abs(a) + np.abs(b))).all(), (
            f"{on_segment}: {name} is off the segment at {fraction}"
        )
    assert measure(exact(state)) <= budget + ROUNDING, in_budget

    def is_outside(further):
        point = AdapterParameters(*(a + (fraction + further) * (b - a) for a, b in zip(start, end, strict=True)))
        try:
            return measure(point) > budget - ROUNDING
        except DegenerateBasisError:
            return True

    assert any(map(is_outside, FURTHER)), f"BUDGET-4: {fraction} of the way, and all further points are inside"


def assert_as_it_was(found, moved, clause):
    *state, fraction = found
    assert fraction == 1, clause
    for array, given in zip(state, moved, strict=True):
        assert array.tobytes() == given.tobytes(), f"{clause}: a state that is inside has changed"


@pytest.mark.clause("BUDGET-1", "BUDGET-2", "BUDGET-4")
@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_state_beyond_its_budget_is_pulled_back_to_its_edge(backend, sizes, move):
    require(backend, "limit_displacement")
    anchor, moved = states_of(backend, sizes, move)
    measure = partial(lambda start, state: displacement(start, state, K), exact(anchor))
    for share in SHARES:
        budget = share * measure(exact(moved))
        found = backend.limit_displacement(*anchor, *moved, budget, K)
        assert_limited(found, anchor, moved, measure, budget, ("BUDGET-1", "BUDGET-2"))


@pytest.mark.clause("BUDGET-2", "DATA-3")
@pytest.mark.parametrize("factor", [1.001, float("inf")])
@pytest.mark.parametrize("sizes", [(1, 2, 5), *SIZES], ids=str)
def test_a_state_within_its_budget_stays_as_it_is(backend, sizes, factor):
    """One stream never moves anything."""
    require(backend, "limit_displacement")
    anchor, moved = states_of(backend, sizes)
    budget = factor * max(displacement(exact(anchor), exact(moved), K), 1e-3)
    assert_as_it_was(backend.limit_displacement(*anchor, *moved, budget, K), moved, "BUDGET-2")
    require(backend, "limit_data_displacement")
    (anchor, moved), moment = states_of(backend, sizes, "logits"), moment_of(backend, sizes)
    budget = factor * max(data_displacement(exact(anchor), exact(moved), moment, K), 1e-3)
    assert_as_it_was(backend.limit_data_displacement(*anchor, *moved, *moment, budget, K), moved, "DATA-3")


@pytest.mark.clause("BUDGET-3")
def test_what_is_no_budget_and_what_is_no_state_is_refused(backend):
    require(backend, "limit_displacement")
    anchor, moved = states_of(backend, (3, 2, 9))
    limited = partial(backend.limit_displacement, *anchor, *moved)
    taken = [budget for budget in NO_BUDGETS if not fails(partial(limited, budget, K))]
    assert not taken, f"BUDGET-3: taken as budgets: {taken}"
    assert_arrays_are_refused(
        lambda *states: backend.limit_displacement(*states, 0.1, K), [*anchor, *moved], "BUDGET-3"
    )
    zeros = [*anchor[:2], np.zeros_like(anchor[2])]
    assert fails(lambda: backend.limit_displacement(*zeros, *moved, 0.1, K)), "an anchor whose basis is 0"


def assert_arrays_are_refused(limited, states, clause):
    """NaN and infinity anywhere, and an anchor of other sizes."""
    for place, value in ((place, value) for place in range(6) for value in (np.nan, np.inf)):
        spoilt = [np.array(array) for array in states]
        spoilt[place].reshape(-1)[-1] = value
        assert fails(partial(limited, *spoilt)), f"{clause}: {value} in argument {place + 1}"
    n, r, d = states[2].shape
    smaller = [np.ones(shape, states[0].dtype) for shape in ((n - 1, n - 1), (), (n - 1, r, d))]
    for others in (smaller, [states[0], states[1], states[2][:, :1]], [states[0], states[1], states[2][..., 1:]]):
        assert fails(partial(limited, *others, *states[3:])), f"{clause}: an anchor of other sizes"


# Tokens that were seen -----------------------------------------------------------------------------------------------


def tokens_of(backend, sizes, leading=(7,)):
    """Most of them in a few directions, as the tokens of a text are, and one of zeros."""
    rng = np.random.default_rng(11)
    x = rng.standard_normal((*leading, 2)) @ rng.standard_normal((2, sizes[2]))
    x += 0.1 * rng.standard_normal(x.shape)
    x[(0,) * len(leading)] = 0
    return np.asarray(x, backend.parameter_dtype)


def moment_of(backend, sizes):
    """Of some tokens, with the basis of both states."""
    return reference.stream_moment(tokens_of(backend, sizes), states_of(backend, sizes, "logits")[0][2])


@pytest.mark.clause("DATA-1")
@pytest.mark.parametrize("leading", [(1,), (7,), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("sizes", [(1, 2, 5), *SIZES], ids=str)
def test_a_moment_is_the_sum_over_tokens_whatever_their_size(backend, sizes, leading):
    """A token of zeros counts. The squares of 2^70 and of 2^-70 leave the range of float32."""
    require(backend, "stream_moment")
    x, basis = tokens_of(backend, sizes, leading), states_of(backend, sizes)[0][2]
    expected = reference.stream_moment(x, basis)
    allowed = 1e-5 * max(float(np.trace(expected.total)), 1e-30)
    for power in (0, 70, -70):
        scaled = x * x.dtype.type(2.0**power)
        found, again = backend.stream_moment(scaled, basis), backend.stream_moment(scaled[::-1], basis)
        assert found.tokens == expected.tokens == x.size // sizes[2]
        np.testing.assert_allclose(
            found.total, expected.total, rtol=0, atol=allowed, err_msg=f"DATA-1: times 2^{power}"
        )
        np.testing.assert_allclose(again.total, found.total, rtol=0, atol=allowed, err_msg="DATA-1: another order")


@pytest.mark.clause("DATA-1", "DATA-5")
def test_no_moment_is_taken_of_what_is_not_finite_or_does_not_fit(backend):
    require(backend, "stream_moment")
    x, basis = tokens_of(backend, (3, 2, 9)), states_of(backend, (3, 2, 9))[0][2]
    for value in (np.nan, np.inf):
        for place in (0, 1):
            spoilt = [np.array(x), np.array(basis)]
            spoilt[place].reshape(-1)[-1] = value
            assert fails(partial(backend.stream_moment, *spoilt)), f"DATA-1: {value}"
    for tokens, rows in ((x[:, 1:], basis), (x, basis[0]), (x[0, 0], basis)):
        assert fails(partial(backend.stream_moment, tokens, rows)), f"DATA-1: {tokens.shape} with {rows.shape}"


@pytest.mark.clause("DATA-3", "BUDGET-4")
@pytest.mark.parametrize("move", ["logits", "gate"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_state_beyond_its_data_budget_is_pulled_back_to_its_edge(backend, sizes, move):
    require(backend, "limit_data_displacement")
    (anchor, moved), moment = states_of(backend, sizes, move), moment_of(backend, sizes)
    measure = partial(lambda start, state: data_displacement(start, state, moment, K), exact(anchor))
    for share in SHARES:
        budget = share * measure(exact(moved))
        found = backend.limit_data_displacement(*anchor, *moved, *moment, budget, K)
        assert found.basis.tobytes() == anchor[2].tobytes(), "DATA-3: the basis has changed"
        assert_limited(found, anchor, moved, measure, budget, ("DATA-3", "DATA-3"))


@pytest.mark.clause("DATA-4")
def test_a_state_with_another_basis_than_its_anchor_is_refused(backend):
    """Be it in one bit, or in the sign of a zero."""
    require(backend, "limit_data_displacement")
    sizes = (3, 2, 9)
    (anchor, moved), moment = states_of(backend, sizes, "logits"), moment_of(backend, sizes)
    anchor[2][0, 0, 0] = moved[2][0, 0, 0] = 0.0
    backend.limit_data_displacement(*anchor, *moved, *moment, 0.1, K)
    for place, value in (((1, 1, 1), np.nextafter(moved[2][1, 1, 1], moved[2].dtype.type(9))), ((0, 0, 0), -0.0)):
        other = np.array(moved[2])
        other[place] = value
        call = (*anchor, *moved[:2], other, *moment, 0.1, K)
        assert fails(partial(backend.limit_data_displacement, *call)), f"DATA-4: {value} at {place}"


@pytest.mark.clause("DATA-5", "BUDGET-3")
def test_what_is_no_moment_is_refused(backend):
    require(backend, "limit_data_displacement")
    sizes = (3, 2, 9)
    (anchor, moved), (total, tokens) = states_of(backend, sizes, "logits"), moment_of(backend, sizes)
    states, lopsided, spoilt = [*anchor, *moved], total.copy(), total.copy()
    lopsided[0, 1] += 0.01 * np.trace(total)
    spoilt[1, 1] = np.nan
    least = np.linalg.eigh(total)[1][:, :1]
    indefinite = total - 0.01 * np.trace(total) * (least @ least.T)
    wrong = {
        **{f"a budget of {budget}": (total, tokens, budget) for budget in NO_BUDGETS},
        **{f"{count} tokens": (total, count, 0.1) for count in (0, -3, 2.5, True, None)},
        **{f"a sum of shape {sum_.shape}": (sum_, tokens, 0.1) for sum_ in (total[1:, 1:], total[0], total[1:])},
        "a sum that is not symmetric": (lopsided, tokens, 0.1),
        "a sum that is not positive semidefinite": (indefinite, tokens, 0.1),
        "a sum that is not finite": (spoilt, tokens, 0.1),
    }
    limited = partial(backend.limit_data_displacement, *states)
    taken = [name for name, given in wrong.items() if not fails(partial(limited, *given, K))]
    assert not taken, f"DATA-5: taken with {'; '.join(taken)}"
    assert_arrays_are_refused(
        lambda *arrays: backend.limit_data_displacement(*arrays, total, tokens, 0.1, K), states, "DATA-5"
    )


@pytest.mark.clause("DATA-3")
def test_the_budget_is_over_all_tokens_of_the_moment(backend):
    """Twice the sum over twice the tokens is the same mean."""
    require(backend, "limit_data_displacement")
    sizes = (4, 4, 64)
    (anchor, moved), moment = states_of(backend, sizes), moment_of(backend, sizes)
    moved[2] = anchor[2]
    twice = StreamMoment(2 * moment.total, 2 * moment.tokens)
    budget = 0.3 * data_displacement(exact(anchor), exact(moved), moment, K)
    once, again = (backend.limit_data_displacement(*anchor, *moved, *m, budget, K) for m in (moment, twice))
    assert once.fraction == pytest.approx(again.fraction, abs=1e-5), "DATA-3"

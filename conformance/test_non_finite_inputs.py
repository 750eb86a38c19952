"""Values that are not finite: never hidden where they are a parameter's, never spread where they are a token's.

Clauses: MIX-11, SINK-9, GRAD-8, GRAD-9.
"""

from functools import partial

import numpy as np
import pytest

from conformance.agreement import HALF, INPUTS, fails_or_all_nan, fails_or_nowhere_finite
from conformance.compare import assert_within
from conformance.scenes import BATCHES, SCENES, inputs_in
from conformance.tolerances import tolerance_for

BAD = [np.nan, np.inf, -np.inf]
PARAMETERS = INPUTS[1:]
K = 3
pytestmark = pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow", "ignore:divide by zero")


def corners(array):
    """The first, the last and one place in between."""
    shape = np.asarray(array.shape, int)
    return {tuple(0 * shape), tuple(shape - 1), tuple(shape // 2)}


def rows_of(array):
    """Token by token, one a row; a view."""
    return array.reshape(-1, array.shape[-1])


def assert_same(backend, actual, expected, context):
    name = np.asarray(actual).dtype.name
    operation, dtype = ("adapter y", name) if name in HALF else ("adapter y - x", backend.parameter_dtype)
    tolerance = tolerance_for(operation, dtype, "forward")
    actual, expected = np.asarray(actual).astype(np.float64), np.asarray(expected).astype(np.float64)
    size = np.linalg.norm(expected, axis=-1, keepdims=True)
    assert_within(actual, expected, tolerance, clause="MIX-11", scale=size, context=context)


def is_finite(result):
    return np.isfinite(np.asarray(result).astype(np.float64))


@pytest.mark.clause("MIX-11", "SINK-9", "GRAD-9")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", ["mix_logits", "basis"])
@pytest.mark.parametrize("scene", SCENES)
def test_a_parameter_that_is_not_finite_never_gives_a_finite_number(backend, scene, name, bad):
    """Neither in y nor in any cotangent, wherever in the parameter it is."""
    for index in corners(inputs_in(backend, scene)[name]):
        given = inputs_in(backend, scene)
        given[name][index] = bad
        assert fails_or_all_nan(partial(backend.adapter_forward, *given.values(), K)), index
        assert fails_or_nowhere_finite(partial(backend.adapter_vjp, *given.values(), given["x"], K)), index


@pytest.mark.clause("SINK-9", "GRAD-9")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("shape", BATCHES, ids=str)
def test_logits_that_are_not_finite_never_give_a_finite_number(backend, shape, bad):
    for index in corners(np.zeros(shape)):
        logits = np.zeros(shape, backend.parameter_dtype)
        logits[index] = bad
        assert fails_or_all_nan(partial(one_of, backend.sinkhorn_projection, index[:-2], logits)), index
        gradient = partial(one_of, backend.sinkhorn_projection_vjp, index[:-2], logits, np.ones_like(logits))
        assert fails_or_nowhere_finite(gradient), f"GRAD-9: {index}"


def one_of(function, matrix, *arrays):
    """Of a batch; the other matrices may be as they are."""
    return function(*arrays, K)[matrix]


@pytest.mark.clause("MIX-11", "GRAD-9")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("scene", SCENES)
def test_a_gate_that_is_not_finite_is_never_a_number_in_between(backend, scene, bad):
    """NaN is refused or gives NaN; an infinity may also be taken at its limit, fully open or closed."""
    given = inputs_in(backend, scene)

    def forward(value):
        given["gate_logit"] = np.asarray(value, backend.parameter_dtype)
        return [backend.adapter_forward(*given.values(), K)]

    def gradients(value):
        given["gate_logit"] = np.asarray(value, backend.parameter_dtype)
        return backend.adapter_vjp(*given.values(), given["x"], K)

    if not fails_or_nowhere_finite(lambda: forward(bad)):
        assert not np.isnan(bad)
        assert_same(backend, forward(bad)[0], forward(np.sign(bad) * 1e4)[0], bad)
    if not fails_or_nowhere_finite(lambda: gradients(bad)):
        assert not np.isnan(bad), "GRAD-9"
        for actual, expected in zip(gradients(bad), gradients(np.sign(bad) * 1e4), strict=True):
            limit, within = np.asarray(expected).astype(np.float64), 1e-2 if actual.dtype.name in HALF else 1e-5
            close = np.abs(actual.astype(np.float64) - limit) <= within * np.abs(limit).max(initial=0.0)
            assert close.all(), f"GRAD-9: {bad}"


def assert_parameters_lost(gradients, context):
    """The cotangents of the parameters are sums over tokens: none of them is finite throughout."""
    for name in PARAMETERS:
        assert not is_finite(getattr(gradients, name)).all(), f"GRAD-8, {name}: {context}"


@pytest.mark.clause("MIX-11", "GRAD-8")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("scene", SCENES)
def test_a_token_that_is_not_finite_passes_through_and_touches_no_other(backend, scene, bad):
    """The cotangents of the parameters hold it; that of x does not depend on x."""
    clean = inputs_in(backend, scene)
    token, cotangent = len(rows_of(clean["x"])) // 2, np.ones_like(clean["x"])
    y = backend.adapter_forward(*clean.values(), K)
    gradients = backend.adapter_vjp(*clean.values(), cotangent, K)
    for place in places(clean["x"]):
        given = inputs_in(backend, scene)
        rows_of(given["x"])[token, place] = bad
        spoilt = rows_of(np.asarray(backend.adapter_forward(*given.values(), K)))
        assert not is_finite(spoilt[token, place])
        assert_same(backend, np.delete(spoilt, token, 0), np.delete(rows_of(np.asarray(y)), token, 0), bad)
        pulled_back = backend.adapter_vjp(*given.values(), cotangent, K)
        assert_same(backend, pulled_back.x, gradients.x, bad)
        assert_parameters_lost(pulled_back, bad)


def places(x):
    """In a token: all of a short one."""
    d = x.shape[-1]
    return range(d) if d < 10 else (0, 1, d // 2, d - 1)


@pytest.mark.clause("GRAD-8")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("scene", SCENES)
def test_a_cotangent_of_the_adapter_that_is_not_finite_is_not_hidden(backend, scene, bad):
    given = inputs_in(backend, scene)
    token, cotangent = len(rows_of(given["x"])) // 2, np.ones_like(given["x"])
    clean = rows_of(np.asarray(backend.adapter_vjp(*given.values(), cotangent, K).x))
    for place in places(given["x"]):
        spoilt = np.array(cotangent)
        rows_of(spoilt)[token, place] = bad
        gradients = backend.adapter_vjp(*given.values(), spoilt, K)
        grad_x = rows_of(np.asarray(gradients.x))
        assert not is_finite(grad_x[token, place])
        assert_same(backend, np.delete(grad_x, token, 0), np.delete(clean, token, 0), bad)
        assert_parameters_lost(gradients, bad)


@pytest.mark.clause("GRAD-8")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("shape", BATCHES, ids=str)
def test_a_cotangent_of_the_projection_that_is_not_finite_is_not_hidden(backend, shape, bad):
    """No entry of its matrix is finite. Other matrices of the batch are as they are."""
    logits = np.random.default_rng(3).standard_normal(shape).astype(backend.parameter_dtype)
    cotangent = np.random.default_rng(4).standard_normal(shape).astype(backend.parameter_dtype)
    clean = np.array(backend.sinkhorn_projection_vjp(logits, cotangent, K))
    for index in corners(logits):
        spoilt = np.array(cotangent)
        spoilt[index] = bad
        gradient = np.array(backend.sinkhorn_projection_vjp(logits, spoilt, K))
        assert not np.isfinite(gradient[index[:-2]]).any(), index
        gradient[index[:-2]] = clean[index[:-2]]
        assert np.allclose(gradient, clean, rtol=0, atol=1e-5)

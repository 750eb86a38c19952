"""Values that are not finite: never hidden where they are a parameter's, never spread where they are a token's.

Clauses: MIX-11, SINK-9, GRAD-8, GRAD-9.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from conformance.agreement import INPUTS, fails_or_all_nan, fails_or_nowhere_finite, inputs_of
from conformance.compare import assert_within
from conformance.strategies import Adapter, Logits
from conformance.tolerances import tolerance_for

BAD = [np.nan, np.inf, -np.inf]
PARAMETERS = INPUTS[1:]
STREAMS = [1, 3]  # with one stream nothing is mixed, and a shortcut may lose what is not finite
pytestmark = pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow", "ignore:divide by zero")


def inputs(backend, streams=3, leading=(5,)):
    case = Adapter(Logits("normal", 1.0, streams, (), 4), 1, 1, leading, 0.0, 1.0, 1.0, False, 5)
    return dict(zip(INPUTS, map(np.array, inputs_of(backend, case)), strict=True))


def corners(array):
    """The first, the last and one place in between."""
    shape = np.asarray(array.shape, int)
    return {tuple(0 * shape), tuple(shape - 1), tuple(shape // 2)}


def assert_same(backend, actual, expected, context):
    tolerance = tolerance_for("adapter y - x", backend.parameter_dtype, "forward")
    size = np.linalg.norm(np.float64(expected), axis=-1, keepdims=True)
    assert_within(actual, expected, tolerance, clause="MIX-11", scale=size, context=context)


@pytest.mark.clause("MIX-11", "SINK-9", "GRAD-9")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", ["mix_logits", "basis"])
@pytest.mark.parametrize("streams", STREAMS)
def test_a_parameter_that_is_not_finite_never_gives_a_finite_number(backend, streams, name, bad):
    """Neither in y nor in any cotangent, wherever in the parameter it is."""
    for index in corners(inputs(backend, streams)[name]):
        given = inputs(backend, streams)
        given[name][index] = bad
        assert fails_or_all_nan(partial(backend.adapter_forward, *given.values(), 3)), index
        assert fails_or_nowhere_finite(partial(backend.adapter_vjp, *given.values(), given["x"], 3)), index


@pytest.mark.clause("SINK-9", "GRAD-9")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (2, 1, 1), (2, 3, 3)], ids=str)
def test_logits_that_are_not_finite_never_give_a_finite_number(backend, shape, bad):
    for index in corners(np.zeros(shape)):
        logits = np.zeros(shape, backend.parameter_dtype)
        logits[index] = bad
        assert fails_or_all_nan(partial(one_of, backend.sinkhorn_projection, index[:-2], logits)), index
        gradient = partial(one_of, backend.sinkhorn_projection_vjp, index[:-2], logits, np.ones_like(logits))
        assert fails_or_nowhere_finite(gradient), f"GRAD-9: {index}"


def one_of(function, matrix, *arrays):
    """Of a batch; the other matrices may be as they are."""
    return function(*arrays, 3)[matrix]


@pytest.mark.clause("MIX-11", "GRAD-9")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("streams", STREAMS)
def test_a_gate_that_is_not_finite_is_never_a_number_in_between(backend, streams, bad):
    """NaN is refused or gives NaN; an infinity may also be taken at its limit, fully open or closed."""
    given = inputs(backend, streams)

    def forward(value):
        given["gate_logit"] = np.asarray(value, backend.parameter_dtype)
        return [backend.adapter_forward(*given.values(), 3)]

    def gradients(value):
        given["gate_logit"] = np.asarray(value, backend.parameter_dtype)
        return backend.adapter_vjp(*given.values(), given["x"], 3)

    if not fails_or_nowhere_finite(lambda: forward(bad)):
        assert not np.isnan(bad)
        assert_same(backend, forward(bad)[0], forward(np.sign(bad) * 1e4)[0], bad)
    if not fails_or_nowhere_finite(lambda: gradients(bad)):
        assert not np.isnan(bad), "GRAD-9"
        for actual, expected in zip(gradients(bad), gradients(np.sign(bad) * 1e4), strict=True):
            size = np.abs(np.float64(expected)).max(initial=0.0)
            assert (np.abs(np.float64(actual) - expected) <= 1e-5 * size).all(), f"GRAD-9: {bad}"


@pytest.mark.clause("MIX-11", "GRAD-8")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("streams", STREAMS)
def test_a_token_that_is_not_finite_passes_through_and_touches_no_other(backend, streams, bad):
    """The cotangents of the parameters, which are sums over tokens, hold it; that of x does not depend on x."""
    clean = inputs(backend, streams)
    others, cotangent = [0, 1, 3, 4], np.ones_like(clean["x"])
    y = backend.adapter_forward(*clean.values(), 3)
    gradients = backend.adapter_vjp(*clean.values(), cotangent, 3)
    for place in range(clean["x"].shape[-1]):
        given = inputs(backend, streams)
        given["x"][2, place] = bad
        spoilt = backend.adapter_forward(*given.values(), 3)
        assert not np.isfinite(spoilt[2, place])
        assert_same(backend, spoilt[others], y[others], bad)
        pulled_back = backend.adapter_vjp(*given.values(), cotangent, 3)
        assert_same(backend, pulled_back.x, gradients.x, bad)
        for name in PARAMETERS:
            assert not np.isfinite(getattr(pulled_back, name)).all(), f"GRAD-8: {name}"


@pytest.mark.clause("GRAD-8")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("streams", STREAMS)
def test_a_cotangent_of_the_adapter_that_is_not_finite_is_not_hidden(backend, streams, bad):
    given = inputs(backend, streams)
    others, cotangent = [0, 1, 3, 4], np.ones_like(given["x"])
    clean = backend.adapter_vjp(*given.values(), cotangent, 3)
    for place in range(given["x"].shape[-1]):
        spoilt = np.array(cotangent)
        spoilt[2, place] = bad
        gradients = backend.adapter_vjp(*given.values(), spoilt, 3)
        assert not np.isfinite(gradients.x[2, place])
        assert_same(backend, gradients.x[others], clean.x[others], bad)
        for name in PARAMETERS:
            assert not np.isfinite(getattr(gradients, name)).all(), f"GRAD-8: {name}"


@pytest.mark.clause("GRAD-8")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (2, 1, 1), (2, 3, 3)], ids=str)
def test_a_cotangent_of_the_projection_that_is_not_finite_is_not_hidden(backend, shape, bad):
    """No entry of its matrix is finite. Other matrices of the batch are as they are."""
    logits = np.random.default_rng(3).standard_normal(shape).astype(backend.parameter_dtype)
    cotangent = np.random.default_rng(4).standard_normal(shape).astype(backend.parameter_dtype)
    clean = backend.sinkhorn_projection_vjp(logits, cotangent, 3)
    for index in corners(logits):
        spoilt = np.array(cotangent)
        spoilt[index] = bad
        gradient = backend.sinkhorn_projection_vjp(logits, spoilt, 3)
        assert not np.isfinite(gradient[index[:-2]]).any(), index
        for other in range(len(shape) == 3 and 2):
            if other != index[0]:
                assert np.allclose(gradient[other], clean[other], rtol=0, atol=1e-5)

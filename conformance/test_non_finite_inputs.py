"""Values that are not finite: never hidden where they are a parameter's, never spread where they are a token's.

Clauses: MIX-11, SINK-9.
"""

from __future__ import annotations

import numpy as np
import pytest

from conformance.agreement import fails_or_all_nan, inputs_of
from conformance.compare import assert_within
from conformance.strategies import Adapter, Logits
from conformance.tolerances import tolerance_for

BAD = [np.nan, np.inf, -np.inf]


def inputs(backend, leading=(5,)):
    return inputs_of(backend, Adapter(Logits("normal", 1.0, 3, (), 4), 1, 1, leading, 0.0, 1.0, 1.0, False, 5))


def assert_same(backend, actual, expected, context):
    tolerance = tolerance_for("adapter y - x", backend.parameter_dtype, "forward")
    size = np.linalg.norm(np.float64(expected), axis=-1, keepdims=True)
    assert_within(actual, expected, tolerance, clause="MIX-11", scale=size, context=context)


@pytest.mark.clause("MIX-11")
@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("index", [(0, 0, 0), (2, 0, 3)])
def test_a_basis_that_is_not_finite_never_gives_a_finite_y(backend, bad, index):
    x, logits, gate, basis = inputs(backend)
    basis[index] = bad
    assert fails_or_all_nan(lambda: backend.adapter_forward(x, logits, gate, basis, 3))


@pytest.mark.clause("MIX-11")
@pytest.mark.parametrize("bad", BAD)
def test_a_gate_that_is_not_finite_is_never_a_number_in_between(backend, bad):
    """NaN is refused or gives NaN; an infinity may also be taken at its limit, fully open or closed."""
    x, logits, gate, basis = inputs(backend)

    def forward(value):
        return backend.adapter_forward(x, logits, np.asarray(value, gate.dtype), basis, 3)

    if not fails_or_all_nan(lambda: forward(bad)):
        assert not np.isnan(bad)
        assert_same(backend, forward(bad), forward(np.sign(bad) * 1e4), bad)


@pytest.mark.clause("MIX-11")
@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bad", BAD)
def test_a_token_that_is_not_finite_passes_through_and_touches_no_other(backend, bad):
    x, logits, gate, basis = inputs(backend)
    clean = backend.adapter_forward(x, logits, gate, basis, 3)
    spoilt = x.copy()
    spoilt[2, 1] = bad
    y = backend.adapter_forward(spoilt, logits, gate, basis, 3)
    assert not np.isfinite(y[2, 1])
    others = [0, 1, 3, 4]
    assert_same(backend, y[others], clean[others], bad)


@pytest.mark.clause("SINK-9")
@pytest.mark.parametrize("bad", BAD)
def test_non_finite_logits_never_give_a_finite_y(backend, bad):
    x, logits, gate, basis = inputs(backend)
    logits[1, 2] = bad
    assert fails_or_all_nan(lambda: backend.adapter_forward(x, logits, gate, basis, 3))
    assert fails_or_all_nan(lambda: backend.adapter_vjp(x, logits, gate, basis, x, 3).mix_logits)

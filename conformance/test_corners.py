"""Corners that random drawing seldom meets: zeros, equal rows, far magnitudes.

Clauses: MIX-2, MIX-6, MIX-10, GRAD-7, GRAD-8, SINK-2, BACK-9.
"""

import numpy as np
import pytest

import reference
from conformance.agreement import (
    CLAUSES,
    HALF,
    INPUTS,
    Comparison,
    adapter_gradients,
    assert_agrees,
    assert_agrees_if_resolvable,
    inputs_of,
    require,
    require_x_dtype,
)
from conformance.calls import case_of

FORWARD = ("adapter y - x", "forward")
#: exponents of 2 for x, the cotangent and A; how many tokens. In the last ones an order of products matters, but not
#: for autograd, which multiplies a cotangent by 1 / ||A||^2 before anything else.
SCALES = (
    *((k, 0, 0, 5) for k in (-40, -20, 14, 40)),
    *((0, k, 0, 5) for k in (-40, -20, 14, 40)),
    *((0, 0, k, 5) for k in (-20, 20)),
    *((70, -40, 0, 5), (-40, 70, 0, 5)),
    *((*powers, tokens) for powers in ((110, -70, -20), (-90, 80, 20)) for tokens in (1, 5, 200)),
)


@pytest.mark.clause("MIX-10", "GRAD-7")
@pytest.mark.parametrize("dtype", HALF)
def test_automatic_differentiation_with_x_in_16_bits(backend, dtype):
    require_x_dtype(backend, dtype)
    require(backend, "adapter_autodiff")
    for name, comparison in adapter_gradients(backend, case_of(), 3, dtype, "adapter_autodiff").items():
        row = (f"adapter {name}", dtype if name == "x" else backend.parameter_dtype, "gradient")
        assert assert_agrees_if_resolvable(comparison, row, CLAUSES[name], name), "zeros would have failed"


@pytest.mark.clause("MIX-2", "GRAD-4")
def test_a_token_of_zeros_stays_zero(backend):
    x, *parameters = inputs_of(backend, case_of())
    x[2] = 0
    y = np.asarray(backend.adapter_forward(x, *parameters, 20))
    gradients = backend.adapter_vjp(x, *parameters, x, 20)
    assert not y[2].any()
    assert not gradients.x[2].any()
    assert np.isfinite(y).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.clause("MIX-2", "MIX-6", "GRAD-4", "GRAD-5", "GRAD-6", "GRAD-8")
@pytest.mark.parametrize(("of_x", "of_cotangent", "of_basis", "tokens"), SCALES)
def test_linear_in_x_and_in_the_cotangent_at_any_magnitude(backend, of_x, of_cotangent, of_basis, tokens):
    """Times 2^k, which no rounding sees: the results are those of k = 0, times a power of two. y does not
    see the scale of A. The square of 2^70 overflows, and so does a large x times the 1 / ||A||^2 of a small basis.
    """
    x, logits, gate, basis = inputs_of(backend, case_of(leading=(tokens,)))
    cotangent = case_of(seed=5, leading=(tokens,)).x.astype(x.dtype)
    results = []
    for powers in ((0, 0, 0), (of_x, of_cotangent, of_basis)):
        large, upstream, rows = (a * a.dtype.type(2.0**k) for a, k in zip((x, cotangent, basis), powers, strict=True))
        gradients = backend.adapter_vjp(large, logits, gate, rows, upstream, 20)
        results.append([backend.adapter_forward(large, logits, gate, rows, 20), *gradients])
    of_sums = of_x + of_cotangent
    power_of = {"y": of_x, "x": of_cotangent, "basis": of_sums - of_basis}
    for name, plain, scaled in zip(("y", *INPUTS), *results, strict=True):
        expected = np.float64(plain) * 2.0 ** power_of.get(name, of_sums)
        size = float(np.abs(expected).max())
        comparison = Comparison(np.float64(scaled) / size, expected / size, 1.0)
        assert_agrees(comparison, FORWARD, backend, "GRAD-8", (name, of_x, of_cotangent, of_basis))


@pytest.mark.clause("GRAD-8")
def test_a_cotangent_of_zeros_gives_zeros(backend):
    x, logits, gate, basis = inputs_of(backend, case_of())
    assert not np.any(backend.sinkhorn_projection_vjp(logits, np.zeros_like(logits), 3))
    assert not any(np.any(gradient) for gradient in backend.adapter_vjp(x, logits, gate, basis, np.zeros_like(x), 3))


@pytest.mark.clause("BACK-9", "MIX-2")
@pytest.mark.parametrize("changed", range(4))
def test_the_last_number_of_every_argument_counts(backend, changed):
    """What is computed from a part of an argument, or kept under one, shows where only its last number differs."""
    inputs = [*inputs_of(backend, case_of())]
    backend.sinkhorn_projection(inputs[1], 20)
    backend.adapter_forward(*inputs, 20)
    inputs[changed] = np.array(inputs[changed])
    inputs[changed].reshape(-1)[-1] += 0.5
    x, *parameters = (array.astype(np.float64) for array in inputs)
    expected = reference.adapter_forward(x, reference.AdapterParameters(*parameters), 20) - x
    actual = np.asarray(backend.adapter_forward(*inputs, 20), np.float64) - x
    size = np.linalg.norm(x, axis=-1, keepdims=True)
    assert_agrees(Comparison(actual, expected, 4 * size), FORWARD, backend, "MIX-2", changed)
    mixing = Comparison(backend.sinkhorn_projection(inputs[1], 20), reference.sinkhorn_projection(inputs[1], 20), 4.0)
    assert_agrees(mixing, ("sinkhorn_projection", "forward"), backend, "BACK-9", changed)

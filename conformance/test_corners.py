"""Corners that random drawing seldom meets: zeros, equal rows, far magnitudes, sizes that coincide, many axes, large K.

Clauses: MIX-2, MIX-6, GRAD-7, GRAD-8, SINK-1, SINK-2, BACK-9.
"""

from __future__ import annotations

import numpy as np
import pytest

import reference
from conformance.agreement import (
    CLAUSES,
    HALF,
    INPUTS,
    Comparison,
    adapter_change,
    adapter_gradients,
    assert_agrees,
    assert_agrees_if_resolvable,
    inputs_of,
    projection,
    projection_gradient,
    require_x_dtype,
    settled_matrices,
)
from conformance.profiles import slow
from conformance.strategies import Adapter, Logits, random_cotangent

FORWARD = ("adapter y - x", "forward")
FAR = (-40, -20, 14, 40)


#: n, r, what d is more than n r, axes of the tokens: which of them is which, a port cannot tell by its size
COINCIDENT = [
    *((3, 2, 1, (3,)), (3, 2, 0, (6,)), (2, 2, 0, (2, 2)), (4, 1, 0, (4, 4)), (3, 3, 0, (9, 9)), (2, 1, 0, (2, 2, 2))),
    *((3, 2, 1, (2,)), (3, 2, 1, (7, 7)), (3, 3, 1, (3, 3, 3)), (5, 1, 0, (5, 1)), (2, 3, 0, (3, 2))),
]
MANY_AXES = [(1, 2, 1, 1, 2, 1, 1), (2, 1, 1, 1, 1, 1, 1, 3)]
LARGE_K = [128, 129, 256, 300, 1000]


def case_of(seed=4):
    return Adapter(Logits("normal", 0.5, 3, (), seed), 2, 3, (5,), 1.0, 1.0, 1.0, True, seed)


def assert_adapter_agrees(backend, case, iterations=3, x_dtype=None):
    """y, and the four cotangents, with x in 16 bits those of the port's own automatic differentiation, too."""
    half = x_dtype in HALF
    functions = ["adapter_vjp", *(["adapter_autodiff"] if half and hasattr(backend, "adapter_autodiff") else [])]
    comparison = adapter_change(backend, case, iterations, x_dtype)
    row = (*(("adapter y", x_dtype) if half else ("adapter y - x", backend.parameter_dtype)), "forward")
    assert_agrees_if_resolvable(comparison, row, "MIX-2", case)
    for function in functions:
        found = adapter_gradients(backend, case, iterations, x_dtype, function=function)
        for name, comparison in found.items():
            row = (f"adapter {name}", x_dtype if half and name == "x" else backend.parameter_dtype, "gradient")
            assert_agrees_if_resolvable(comparison, row, CLAUSES[name], (function, name, case))


def assert_projection_agrees(backend, case, iterations):
    """M, and its gradient where no kink is near."""
    row, cotangent = ("sinkhorn_projection", backend.parameter_dtype), random_cotangent(case.values.shape, 6)
    assert_agrees_if_resolvable(projection(backend, case, iterations), (*row, "forward"), "SINK-1", (case, iterations))
    gradient = projection_gradient(backend, case, cotangent, iterations)
    settled = settled_matrices(backend, case, cotangent, iterations)
    comparison = Comparison(gradient.actual[settled], gradient.expected[settled], gradient.scale)
    assert_agrees_if_resolvable(comparison, (*row, "gradient"), "GRAD-1", (case, iterations))


@pytest.mark.clause("MIX-2", "GRAD-7")
@pytest.mark.parametrize("sizes", list(map(slow, COINCIDENT)), ids=str)
def test_sizes_that_coincide_are_not_exchanged(backend, sizes):
    """As many tokens as streams, ranks or hidden sizes; as many axes as a basis or a matrix has."""
    n, rank, spare, leading = sizes
    assert_adapter_agrees(
        backend, Adapter(Logits("normal", 1.0, n, (), 3), rank, spare, leading, 0.5, 1.0, 1.0, False, 8)
    )


@pytest.mark.clause("SINK-1", "GRAD-1")
@pytest.mark.parametrize("leading", list(map(slow, [(2,), (3,), (3, 3), (3, 3, 3), *MANY_AXES])), ids=str)
def test_a_batch_of_matrices_is_read_matrix_by_matrix(backend, leading):
    """As many as a matrix has rows; with as many axes as anybody counts."""
    assert_projection_agrees(backend, Logits("normal", 1.0, 3, leading, 5), 3)


@pytest.mark.clause("MIX-2", "GRAD-7")
@pytest.mark.parametrize("leading", list(map(slow, MANY_AXES)), ids=str)
def test_tokens_with_many_axes(backend, leading):
    assert_adapter_agrees(backend, Adapter(Logits("normal", 1.0, 3, (), 3), 2, 1, leading, 0.5, 1.0, 1.0, False, 8))


@pytest.mark.clause("SINK-2", "GRAD-1")
@pytest.mark.parametrize("iterations", list(map(slow, LARGE_K)))
def test_as_many_iterations_as_are_asked_for(backend, iterations):
    """K has no upper limit. With a triangular S every further one still shows, as 1 / K does."""
    assert_projection_agrees(backend, Logits("triangular", 5.0, 3, (), 5), int(iterations))


@pytest.mark.clause("MIX-10", "GRAD-7")
@pytest.mark.parametrize("name", HALF)
def test_automatic_differentiation_with_x_in_16_bits(backend, name):
    require_x_dtype(backend, name)
    assert_adapter_agrees(backend, case_of(), x_dtype=name)


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


@pytest.mark.clause("MIX-2", "GRAD-4", "GRAD-5", "GRAD-6", "GRAD-8")
@pytest.mark.parametrize(
    ("of_x", "of_cotangent"), [*((k, 0) for k in FAR), *((0, k) for k in FAR), (70, -40), (-40, 70)]
)
def test_linear_in_x_and_in_the_cotangent_at_any_magnitude(backend, of_x, of_cotangent):
    """Times 2^k, which no rounding sees: the results are those of k = 0, times 2^k. The square of 2^70 overflows."""
    x, *parameters = inputs_of(backend, case_of())
    cotangent = case_of(seed=5).x.astype(x.dtype)
    scaled = x * x.dtype.type(2.0**of_x), cotangent * x.dtype.type(2.0**of_cotangent)
    results = []
    for tokens, upstream in ((x, cotangent), scaled):
        gradients = backend.adapter_vjp(tokens, *parameters, upstream, 20)
        results.append([backend.adapter_forward(tokens, *parameters, 20), *gradients])
    for name, plain, large in zip(("y", *INPUTS), *results, strict=True):
        expected = np.float64(plain) * 2.0 ** {"y": of_x, "x": of_cotangent}.get(name, of_x + of_cotangent)
        size = float(np.abs(expected).max())
        comparison = Comparison(np.float64(large) / size, expected / size, 1.0)
        assert_agrees(comparison, FORWARD, backend, "GRAD-8", (name, of_x, of_cotangent))


@pytest.mark.clause("MIX-6", "GRAD-6")
@pytest.mark.parametrize("exponent", [-20, 20])
def test_gradient_of_the_basis_at_any_scale_of_it(backend, exponent):
    """y does not see the scale of A, so the gradient of c A is that of A, divided by c."""
    x, logits, gate, basis = inputs_of(backend, case_of())
    factor = basis.dtype.type(2.0**exponent)
    plain = backend.adapter_vjp(x, logits, gate, basis, x, 20)
    scaled = backend.adapter_vjp(x, logits, gate, basis * factor, x, 20)
    expected = np.float64(plain.basis) / float(factor)
    size = float(np.abs(expected).max())
    comparison = Comparison(np.float64(scaled.basis) / size, expected / size, 1.0)
    assert_agrees(comparison, FORWARD, backend, "GRAD-6", exponent)


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

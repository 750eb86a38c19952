"""Gradients of a port: against the reference, and against the port's own forward pass. Clauses: GRAD-1..GRAD-7."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.random import default_rng

import reference
from conformance.agreement import (
    CLAUSES,
    INPUTS,
    Comparison,
    adapter_gradients,
    assert_agrees,
    assume_settled,
    gradient_scales,
    inputs_of,
    mixing_cotangent,
    parameters_of,
    projection_gradient,
    require,
    require_x_dtype,
    settled_within,
)
from conformance.compare import assert_close, assert_within, is_resolvable
from conformance.golden_vectors.projections import TIED
from conformance.strategies import (
    ITERATIONS,
    LEADING_WITH_EMPTY,
    SEEDS,
    SEVERAL_STREAMS,
    SMOOTH,
    adapters,
    comparable_logits,
    logits_of,
    random_cotangent,
)
from conformance.tolerances import tolerance_for

ROW = ("sinkhorn_projection", "gradient")
MAGNITUDES = (0.1, 1.0, 5.0, 20.0)
SLOPED = logits_of(("normal", "triangular"), (0.5, 1.0), range(2, 5))


@pytest.mark.clause("GRAD-1", "GRAD-2", "ACC-1", "ACC-2", "ACC-3")
@given(case=comparable_logits(magnitudes=MAGNITUDES), iterations=ITERATIONS, seed=SEEDS)
def test_projection_gradient_agrees_with_the_reference(backend, case, iterations, seed):
    cotangent = random_cotangent(case.values.shape, seed)
    assume_settled(backend, case, cotangent, iterations)
    comparison = projection_gradient(backend, case, cotangent, iterations)
    assert_agrees(comparison, ROW, backend, "GRAD-1", (case, iterations, seed))


@pytest.mark.clause("GRAD-2")
@pytest.mark.parametrize("iterations", [1, 2])
@given(seed=SEEDS)
def test_largest_row_sum_takes_the_first_argmax_of_a_tie(backend, iterations, seed):
    """Two equal triangular blocks have equal row sums in every dtype, far from 1; the argmax decides the gradient."""
    cotangent, exchange = random_cotangent((4, 4), seed), np.ix_([2, 3, 0, 1], [2, 3, 0, 1])
    comparison = projection_gradient(backend, TIED, cotangent, iterations)
    last = reference.sinkhorn_projection_vjp(TIED.values, cotangent[exchange], iterations)[exchange]
    assume(np.abs(last - comparison.expected).max() > 1e-2)
    assert_agrees(comparison, ROW, backend, "GRAD-2", (iterations, seed))


@pytest.mark.clause("SINK-1", "GRAD-1")
@given(case=comparable_logits(leading=((3,), (2, 3)), magnitudes=(1.0, 5.0)), iterations=ITERATIONS, seed=SEEDS)
def test_each_matrix_of_a_batch_gets_its_own_gradient(backend, case, iterations, seed):
    cotangent, dtype = random_cotangent(case.values.shape, seed), backend.parameter_dtype
    logits = case.values.astype(dtype)
    together = backend.sinkhorn_projection_vjp(logits, cotangent.astype(dtype), iterations)
    tolerance = tolerance_for(*ROW[:1], dtype, "gradient")
    for index in np.ndindex(case.leading):
        alone = backend.sinkhorn_projection_vjp(logits[index], cotangent[index].astype(dtype), iterations)
        scale, context = case.condition * np.abs(cotangent[index]).max(), (case, iterations, seed, index)
        assert_within(together[index], alone, tolerance, clause="GRAD-1", scale=scale, context=context)


@pytest.mark.clause("GRAD-3")
@given(case=comparable_logits(magnitudes=MAGNITUDES), iterations=ITERATIONS, seed=SEEDS)
def test_gradient_of_the_logits_sums_to_zero(backend, case, iterations, seed):
    cotangent = random_cotangent(case.values.shape, seed)
    dtype = backend.parameter_dtype
    gradient = backend.sinkhorn_projection_vjp(case.values.astype(dtype), cotangent.astype(dtype), iterations)
    scale = case.condition * case.n**2 * np.abs(cotangent).max(initial=0.0)
    sums = np.asarray(gradient, np.float64).sum(axis=(-2, -1))
    tolerance = tolerance_for(*ROW[:1], dtype, "gradient")
    assert_close(sums, np.zeros(sums.shape), tolerance, clause="GRAD-3", scale=scale, context=(case, iterations, seed))


@pytest.mark.clause("GRAD-1", "GRAD-4", "GRAD-5", "GRAD-6", "GRAD-7", "ACC-1")
@pytest.mark.parametrize("name", INPUTS)
@given(
    case=adapters(comparable_logits(leading=((),), magnitudes=MAGNITUDES), LEADING_WITH_EMPTY), iterations=ITERATIONS
)
def test_adapter_gradient_agrees_with_the_reference(backend, name, case, iterations):
    if name == "mix_logits":
        assume_settled(backend, case.logits, mixing_cotangent(case, iterations), iterations)
    comparison = adapter_gradients(backend, case, iterations)[name]
    assert_agrees(comparison, (f"adapter {name}", "gradient"), backend, CLAUSES[name], (name, case, iterations))


@pytest.mark.clause("GRAD-7")
@pytest.mark.parametrize("name", INPUTS)
@given(case=adapters(SEVERAL_STREAMS, gates=st.floats(-5.0, 5.0, width=32)))
def test_every_input_gets_a_gradient(backend, name, case):
    """Not zero where the reference's is not, entry by entry where it matters, and of the input's shape."""
    inputs = inputs_of(backend, case)
    index = INPUTS.index(name)
    expected = reference.adapter_vjp(case.x, parameters_of(case), case.cotangent, 3)[index]
    assume(np.abs(expected / adapter_gradients(backend, case, 3)[name].scale).max() > 1e-3)
    actual = backend.adapter_vjp(*inputs, case.cotangent.astype(backend.parameter_dtype), 3)[index]
    assert actual.shape == inputs[index].shape
    assert (actual[np.abs(expected) > 0.1 * np.abs(expected).max()] != 0).all(), f"GRAD-7: {name} for {case}"


@pytest.mark.clause("GRAD-6")
@given(case=adapters(SEVERAL_STREAMS, gates=st.floats(-3.0, 8.0, width=32)))
def test_gradient_of_the_basis_has_no_part_along_the_basis(backend, case):
    """y does not depend on the scale of A, so ``<dL/dA, A> = 0``; the part through kappa alone sees to that."""
    comparison = adapter_gradients(backend, case, 20)["basis"]
    basis = np.float64(case.basis)
    along = (np.float64(comparison.actual) * basis).sum()
    flat = basis.reshape(-1, case.hidden_size)
    size = comparison.scale * np.linalg.norm(flat, 2) * np.sqrt(len(flat))
    tolerance = tolerance_for("adapter basis", backend.parameter_dtype, "gradient")
    assert_close(along, 0.0, tolerance, clause="GRAD-6", scale=size, context=case)


@pytest.mark.clause("GRAD-7")
@given(case=adapters(SEVERAL_STREAMS, leading=((2, 3), (4,))))
def test_leading_axes_are_summed_for_the_parameters(backend, case):
    """The gradient of the batch is the sum of the gradients of its tokens."""
    x, *parameters = inputs_of(backend, case)
    cotangent = case.cotangent.astype(backend.parameter_dtype)
    whole = backend.adapter_vjp(x, *parameters, cotangent, 3)
    tokens = zip(x.reshape(-1, case.hidden_size), cotangent.reshape(-1, case.hidden_size), strict=True)
    parts = [backend.adapter_vjp(token, *parameters, upstream, 3) for token, upstream in tokens]
    scales = adapter_gradients(backend, case, 3)
    for name in INPUTS[1:]:
        summed = np.sum([np.float64(getattr(part, name)) for part in parts], axis=0)
        tolerance = tolerance_for(f"adapter {name}", backend.parameter_dtype, "gradient")
        error = np.abs(getattr(whole, name) - summed)
        assert (error <= 2 * tolerance.atol * scales[name].scale).all(), (name, case)


@pytest.mark.clause("MIX-10", "GRAD-4", "GRAD-5", "GRAD-6", "BACK-6")
@pytest.mark.parametrize("x_dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", INPUTS)
@given(case=adapters(SEVERAL_STREAMS, gates=st.floats(-3.0, 8.0, width=32)).filter(lambda a: a.x_scale >= 1.0))
def test_half_precision_x_gets_full_precision_gradients(backend, name, x_dtype, case):
    """x and dL/dy in 16 bits are exact numbers; only x's own gradient is rounded, and only at the end."""
    require_x_dtype(backend, x_dtype)
    comparison = adapter_gradients(backend, case, 20, x_dtype)[name]
    if name == "mix_logits":
        assume_settled(backend, case.logits, mixing_cotangent(case, 20), 20)
    dtype = x_dtype if name == "x" else backend.parameter_dtype
    tolerance, (actual, expected, scale) = tolerance_for(f"adapter {name}", dtype, "gradient"), comparison
    assume(is_resolvable(expected, tolerance, scale))
    assert_close(actual, expected, tolerance, clause=CLAUSES[name], scale=scale, context=(name, case))


@pytest.mark.clause("GRAD-1", "GRAD-4", "GRAD-5", "GRAD-6")
@pytest.mark.parametrize("name", INPUTS)
@given(case=adapters(SMOOTH, gates=st.floats(-2.0, 5.0, width=32)), iterations=ITERATIONS, seed=SEEDS)
def test_closed_form_agrees_with_the_ports_own_autodiff(backend, name, case, iterations, seed):
    """For a port that offers it: automatic differentiation of the plain formulas knows nothing of the closed form."""
    require(backend, "adapter_autodiff")
    assume(settled_within(case.logits, mixing_cotangent(case, iterations), iterations, 1e-6 * case.x_scale).all())
    inputs, cotangent = inputs_of(backend, case), case.cotangent.astype(backend.parameter_dtype)
    by_closed_form = getattr(backend.adapter_vjp(*inputs, cotangent, iterations), name)
    by_autodiff = np.float64(getattr(backend.adapter_autodiff(*inputs, cotangent, iterations), name))
    scale = gradient_scales(case, np.float64(inputs[0]), np.float64(cotangent))[name]
    comparison = Comparison(by_closed_form, by_autodiff, scale)
    assert_agrees(comparison, (f"adapter {name}", "gradient"), backend, CLAUSES[name], (name, case, iterations))


@pytest.mark.clause("GRAD-4")
@given(case=adapters(SEVERAL_STREAMS, gates=st.floats(-2.0, 8.0, width=32)), iterations=ITERATIONS)
def test_forward_and_gradient_of_the_port_are_adjoint(backend, case, iterations):
    """``<(G - I) x, w> = <x, (G^T - I) w>``: both sides from the port, without the reference."""
    inputs, cotangent = inputs_of(backend, case), case.cotangent.astype(backend.parameter_dtype)
    x, upstream = np.float64(inputs[0]), np.float64(cotangent)
    change = np.float64(backend.adapter_forward(*inputs, iterations)) - x
    change_back = np.float64(backend.adapter_vjp(*inputs, cotangent, iterations).x) - upstream
    forward, backward = (change * upstream).sum(), (x * change_back).sum()
    size = float((np.linalg.norm(x, axis=-1) * np.linalg.norm(upstream, axis=-1)).sum())
    comparison = Comparison(backward, forward, case.logits.condition * size)
    assert_agrees(comparison, ("adapter x", "gradient"), backend, "GRAD-4", (case, iterations))


@pytest.mark.clause("GRAD-1", "GRAD-4", "GRAD-5", "GRAD-6")
@pytest.mark.parametrize("name", INPUTS)
@given(case=adapters(SLOPED, gates=st.floats(-2.0, 3.0, width=32)), iterations=ITERATIONS, seed=SEEDS)
def test_gradient_agrees_with_differences_of_the_port(backend, name, case, iterations, seed):
    """The port's gradient is the slope of the port's own forward pass, along one direction."""
    row = tolerance_for("differences", backend.parameter_dtype, "gradient")
    rng, index = default_rng(seed), INPUTS.index(name)
    inputs = inputs_of(backend, case)
    x = inputs[0].astype(np.float64)
    change = reference.adapter_forward(x, parameters_of(case), iterations) - x
    # Partly along what the adapter does to x, partly random: a cotangent drawn blindly sees little of one number.
    cotangent = (unit(change) + unit(rng.standard_normal(x.shape))).astype(backend.parameter_dtype)
    by_reference = reference.adapter_vjp(x, parameters_of(case), cotangent, iterations)[index]
    direction = unit(by_reference) + 0.3 * unit(rng.standard_normal(by_reference.shape))
    step = row.eps ** (1 / 3) * direction * (np.linalg.norm(np.float64(inputs[index])) if name in ("x", "basis") else 1)
    ends = [[*inputs], [*inputs]]
    for end, sign in zip(ends, (1.0, -1.0), strict=True):
        end[index] = np.asarray(inputs[index] + sign * step, backend.parameter_dtype)
    reached = ends[0][index].astype(np.float64) - ends[1][index].astype(np.float64)

    def rise(forward):
        high, low = (np.asarray(forward(*end), np.float64) for end in ends)
        return float(((high - low) * cotangent).sum())

    def of_reference(x, *values):
        wide = (np.asarray(value, np.float64) for value in values)
        return reference.adapter_forward(x, reference.AdapterParameters(*wide), iterations)

    size = 2 * row.eps ** (1 / 3) * float(np.linalg.norm(x) * np.linalg.norm(cotangent))
    exact = float((by_reference * reached).sum())
    assume(abs(rise(of_reference) - exact) <= row.atol / 2 * size)  # no kink in between
    by_vjp = float((backend.adapter_vjp(*inputs, cotangent, iterations)[index].astype(np.float64) * reached).sum())
    by_slope = rise(lambda *end: backend.adapter_forward(*end, iterations))
    comparison = Comparison(by_vjp, by_slope, size)
    assert_agrees(comparison, ("differences", "gradient"), backend, CLAUSES[name], (name, case, iterations, seed))


def unit(array):
    return np.asarray(array) / max(float(np.linalg.norm(array)), 1e-30)

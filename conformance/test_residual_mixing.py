"""Residual mixing: agreement with the reference, orientation, gate, kappa, dtypes. Clauses: MIX-1..MIX-6, MIX-10."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import reference
from backends.interface import DTYPES
from conformance.agreement import (
    Comparison,
    adapter_change,
    adapter_output,
    assert_agrees,
    assert_near,
    inputs_of,
    parameters_of,
    require_x_dtype,
)
from conformance.compare import assert_close, assert_within
from conformance.strategies import (
    ITERATIONS,
    LEADING_WITH_EMPTY,
    OPEN_GATES,
    SEEDS,
    SEVERAL_STREAMS,
    Adapter,
    Logits,
    adapters,
    comparable_logits,
)
from conformance.tolerances import tolerance_for
from reference.adapter import adapter_strength, sigmoid
from reference.residual_mixing import residual_mixing

ROW = ("adapter y - x", "forward")


@pytest.mark.clause("MIX-1", "MIX-2", "MIX-5", "MIX-6", "ACC-1")
@given(case=adapters(leading=LEADING_WITH_EMPTY), iterations=ITERATIONS)
def test_agrees_with_the_reference(backend, case, iterations):
    assert_agrees(adapter_change(backend, case, iterations), ROW, backend, "MIX-2", (case, iterations))


@pytest.mark.clause("MIX-3")
@given(case=adapters(comparable_logits(n=range(3, 7), leading=((),), magnitudes=(1.0, 5.0)), gates=OPEN_GATES))
def test_contracts_over_the_second_index(backend, case):
    """Where M and its transpose give clearly different results, the port gives that of M."""
    mixing = reference.sinkhorn_projection(case.mix_logits, 20)
    x, basis = case.x.astype(np.float64), case.basis.astype(np.float64)
    strength = adapter_strength(parameters_of(case))
    right, wrong = (residual_mixing(x, matrix, strength, basis) for matrix in (mixing, mixing.T))
    comparison = adapter_change(backend, case, 20)
    assume((np.abs(right - wrong) / comparison.scale).max() > 1e-3)
    assert_agrees(comparison, ROW, backend, "MIX-3", case)


@pytest.mark.clause("MIX-3")
def test_a_cycle_moves_stream_j_to_stream_i(backend):
    """M = the matrix with M[0, 1] = M[1, 2] = M[2, 0] = 1 reads stream 1 into stream 0, and so on."""
    dtype = backend.parameter_dtype
    logits = np.asarray([[0, 64, 0], [0, 0, 64], [64, 0, 0]], dtype)
    basis = np.eye(3, dtype=dtype)[:, None, :]
    x = np.asarray([1.0, 2.0, 4.0], dtype)
    y = backend.adapter_forward(x, logits, np.asarray(40.0, dtype), basis, 20)
    kappa = 3**0.125  # of three orthonormal rows
    assert_near(backend, np.float64(y), x + (np.asarray([2.0, 4.0, 1.0]) - x) / kappa, "MIX-3", 4.6, "a cycle of three")


@pytest.mark.clause("MIX-4", "MIX-7")
@pytest.mark.parametrize("token", [(0.0, 1.0), (1.0, 0.0), (0.6, -0.8)])
def test_an_exchange_of_two_streams_does_not_expand(backend, token):
    dtype = backend.parameter_dtype
    logits, basis = np.asarray([[0, 64], [64, 0]], dtype), np.eye(2, dtype=dtype)[:, None, :]
    x = np.asarray(token, dtype)
    y = backend.adapter_forward(x, logits, np.asarray(1.0, dtype), basis, 20).astype(np.float64)
    alpha = sigmoid(1.0) / 2**0.125
    assert_near(backend, y, x + alpha * (x[::-1] - x), "MIX-4", 1.0, token)
    assert np.linalg.norm(y) <= np.linalg.norm(x.astype(np.float64)) * (1 + 1e-6)


@pytest.mark.clause("MIX-5")
@given(case=adapters(SEVERAL_STREAMS, gates=st.floats(-4.0, 8.0, width=32)))
def test_change_is_proportional_to_the_sigmoid_of_the_gate_logit(backend, case):
    """And not to another function of it: (y - x) / sigmoid(gamma) is the reference's at gamma = 0, doubled."""
    scale = np.linalg.norm(np.float64(case.x), axis=-1, keepdims=True) * case.logits.condition
    half_open = reference.AdapterParameters(case.mix_logits, np.zeros(()), case.basis)
    expected = 2.0 * (reference.adapter_forward(case.x, half_open, 3) - np.float64(case.x))
    gate = sigmoid(case.gate)
    actual = (adapter_output(backend, case, 3) - np.float64(case.x)) / gate
    assert_agrees(Comparison(actual, expected, scale / gate), ROW, backend, "MIX-5", case)


@pytest.mark.clause("MIX-5")
@pytest.mark.parametrize("gate", [-1e4, -100.0, 100.0, 1e4])
def test_every_finite_gate_is_legal(backend, gate):
    """Open or closed: from |gamma| = 89 on one of exp(gamma) and exp(-gamma) overflows."""
    case = Adapter(Logits("normal", 1.0, 4, (), 4), 2, 1, (5,), gate, 1.0, 1.0, True, 5)
    actual, expected, scale = adapter_change(backend, case, 20)
    tolerance = tolerance_for(*ROW[:1], backend.parameter_dtype, "forward")
    assert_within(actual, expected, tolerance, clause="MIX-5", scale=scale, context=gate)


@pytest.mark.clause("GRAD-6")
@pytest.mark.parametrize("gate", [-1e4, -100.0, 100.0, 1e4])
def test_gradient_at_every_finite_gate(backend, gate):
    case = Adapter(Logits("normal", 1.0, 4, (), 4), 2, 1, (5,), gate, 1.0, 1.0, True, 5)
    gradients = backend.adapter_vjp(*inputs_of(backend, case), case.cotangent.astype(backend.parameter_dtype), 20)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert abs(gradients.gate_logit) < 1e-30


@pytest.mark.clause("MIX-6")
@given(case=adapters(SEVERAL_STREAMS), factor=st.sampled_from((1e-9, 1e-4, 0.37, -1.0, 2.0, 1e4, 1e9)))
def test_independent_of_the_scale_of_the_basis(backend, case, factor):
    x, logits, gate, basis = inputs_of(backend, case)
    y = backend.adapter_forward(x, logits, gate, (basis * basis.dtype.type(factor)).astype(basis.dtype), 20)
    scale = np.linalg.norm(np.float64(case.x), axis=-1, keepdims=True)
    assert_near(backend, np.float64(y), adapter_output(backend, case, 20), "MIX-6", scale, (case, factor))


@pytest.mark.clause("MIX-10", "BACK-6")
@pytest.mark.parametrize("x_dtype", ["float16", "bfloat16"])
@given(case=adapters(SEVERAL_STREAMS, gates=OPEN_GATES).filter(lambda a: a.x_scale >= 1.0))
def test_half_precision_x_with_full_precision_inside(backend, x_dtype, case):
    """One rounding of y at the end, and none before: in 16 bits inside, the streams would lose their last digits."""
    require_x_dtype(backend, x_dtype)
    x, logits, gate, basis = inputs_of(backend, case, x_dtype)
    y = backend.adapter_forward(x, logits, gate, basis, 20)
    assert y.dtype == x.dtype
    size = case.logits.condition * np.linalg.norm(np.float64(x), axis=-1, keepdims=True)
    expected = reference.adapter_forward(x.astype(np.float64), parameters_of(case), 20)
    tolerance = tolerance_for("adapter y", x_dtype, "forward")
    assert_close(y.astype(np.float64), expected, tolerance, clause="MIX-10", scale=size, context=case)


@pytest.mark.clause("MIX-10", "BACK-6")
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("size", [65500.0, 65519.0, 65521.0, 70000.0])
def test_what_rounds_beyond_the_largest_float16_is_an_infinity(backend, size, sign):
    """Of its sign. The read-in of two numbers of x goes to a third one, and the gate makes it ``size``."""
    require_x_dtype(backend, "float16")
    whole = 64000.0 * np.sqrt(2.0)
    x = np.asarray([sign * 64000.0, sign * 64000.0, 0.0], np.float16)
    basis = np.asarray([[[1.0, 1.0, 0.0]], [[0.0, 0.0, np.sqrt(2.0)]]])
    logits, open_gate = np.asarray([[0.0, 60.0], [60.0, 0.0]]), np.asarray(100.0)
    strength = adapter_strength(reference.AdapterParameters(logits, open_gate, basis))
    share = size / (2.0 * whole * strength)
    gate = np.asarray(np.log(share / (1.0 - share)))
    parameters = [array.astype(np.float32) for array in (logits, gate, basis)]
    expected = reference.adapter_forward(
        x.astype(np.float64), reference.AdapterParameters(*(array.astype(np.float64) for array in parameters)), 20
    )
    assert abs(abs(expected[2]) - size) < 0.3, "the case of this test"
    y = backend.adapter_forward(x, *(array.astype(backend.parameter_dtype) for array in parameters), 20)
    assert y[2] == sign * (np.inf if size > 65520.0 else 65504.0), f"MIX-10: {y[2]} for {expected[2]}"


@pytest.mark.clause("MIX-10", "BACK-6")
@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("leading", [(), (2, 3)])
def test_result_has_the_dtype_and_shape_of_x(backend, x_dtype, leading):
    require_x_dtype(backend, x_dtype)
    case = Adapter(Logits("normal", 1.0, 3, (), 4), 2, 1, leading, 0.0, 1.0, 1.0, False, 5)
    x, *parameters = inputs_of(backend, case, x_dtype)
    y = backend.adapter_forward(x, *parameters, 3)
    gradients = backend.adapter_vjp(x, *parameters, x, 3)
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    assert (gradients.x.dtype, gradients.x.shape) == (x.dtype, x.shape)


@pytest.mark.clause("MIX-1", "MIX-2")
@given(sizes=st.sampled_from(((2, 3), (3, 2), (4, 4), (5, 2))), seed=SEEDS)
def test_streams_read_their_own_part_of_the_basis(backend, sizes, seed):
    """(n, r, d), row by row: with unit vectors for A, direction (j, k) moves to the directions (i, k) by M_ij alone."""
    n, rank = sizes
    rng, dtype, tokens = np.random.default_rng(seed), backend.parameter_dtype, n * rank
    logits, order = rng.standard_normal((n, n)).astype(dtype), rng.permutation(tokens).reshape(n, rank)
    basis, gate = np.eye(tokens, dtype=dtype)[order], np.asarray(1.0, dtype)
    mixing = reference.sinkhorn_projection(logits)
    strength = adapter_strength(reference.AdapterParameters(logits, gate, basis))
    expected = np.zeros((n, rank, n, rank))
    for k in range(rank):
        expected[:, k, :, k] = strength * (mixing - np.eye(n)).T
    x = basis.reshape(tokens, tokens)  # token (j, k) is direction k of stream j
    change = np.asarray(backend.adapter_forward(x, logits, gate, basis, 20), np.float64) - x
    comparison = Comparison(change[:, order.ravel()], expected.reshape(tokens, tokens), 1.0)
    assert_agrees(comparison, ROW, backend, "MIX-2", (n, rank, seed))

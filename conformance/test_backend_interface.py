"""The interface: attributes, shapes, dtypes, and calls that leave no trace. Clauses: BACK-1, MIX-1, MIX-10, SINK-1."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from backends.interface import REQUIRED, Gradients
from conformance.agreement import INPUTS, inputs_of
from conformance.compare import assert_close
from conformance.strategies import (
    ITERATIONS,
    LEADING_WITH_EMPTY,
    Adapter,
    Logits,
    adapters,
    comparable_logits,
)
from conformance.tolerances import tolerance_for


def every_call(backend, case, iterations):
    """The arrays of one call of each function, as bytes-comparable copies."""
    inputs = inputs_of(backend, case)
    cotangent = case.cotangent.astype(backend.parameter_dtype)
    square = np.ones_like(inputs[1]) + np.eye(case.logits.n, dtype=inputs[1].dtype)
    before = [array.copy() for array in (*inputs, cotangent, square)]
    results = [
        backend.sinkhorn_projection(inputs[1], iterations),
        backend.sinkhorn_projection_vjp(inputs[1], square, iterations),
        backend.adapter_forward(*inputs, iterations),
        *backend.adapter_vjp(*inputs, cotangent, iterations),
    ]
    for old, new in zip(before, (*inputs, cotangent, square), strict=True):
        assert old.tobytes() == new.tobytes(), f"MIX-10: an input was modified for {case}"
    return [np.array(result) for result in results]


@pytest.mark.clause("BACK-1")
def test_attributes(backend):
    assert isinstance(backend.name, str)
    assert isinstance(backend.version, str)
    assert isinstance(backend.device, str)
    assert np.dtype(backend.parameter_dtype).kind == "f"
    assert all(callable(getattr(backend, function)) for function in REQUIRED)


@pytest.mark.clause("BACK-1", "SINK-1")
@pytest.mark.parametrize("leading", LEADING_WITH_EMPTY)
def test_projection_keeps_shape_and_dtype(backend, leading):
    logits = Logits("normal", 1.0, 3, leading, 7).values.astype(backend.parameter_dtype)
    for result in (
        backend.sinkhorn_projection(logits, 2),
        backend.sinkhorn_projection_vjp(logits, logits, 2),
    ):
        assert isinstance(result, np.ndarray)
        assert result.shape == logits.shape
        assert result.dtype == backend.parameter_dtype


@pytest.mark.clause("BACK-1", "MIX-1")
@pytest.mark.parametrize("leading", LEADING_WITH_EMPTY)
def test_adapter_gradients_are_shaped_as_their_inputs(backend, leading):
    case = Adapter(Logits("normal", 1.0, 3, (), 7), 2, 4, leading, 0.5, 1.0, 1.0, False, 8)
    inputs = inputs_of(backend, case)
    gradients = backend.adapter_vjp(*inputs, inputs[0], 2)
    assert isinstance(gradients, Gradients)
    for name, value, gradient in zip(INPUTS, inputs, gradients, strict=True):
        assert isinstance(gradient, np.ndarray), name
        assert gradient.shape == value.shape, name
        assert gradient.dtype == backend.parameter_dtype, name


@pytest.mark.clause("BACK-1", "SINK-1", "GRAD-7")
@pytest.mark.parametrize("batch", [(0,), (2, 0, 3)])
def test_no_tokens_give_no_output_and_zero_gradients(backend, batch):
    case = Adapter(Logits("normal", 1.0, 3, (), 7), 2, 4, batch, 0.5, 1.0, 1.0, False, 8)
    inputs = inputs_of(backend, case)
    assert backend.adapter_forward(*inputs, 2).shape == inputs[0].shape
    gradients = backend.adapter_vjp(*inputs, inputs[0], 2)
    assert not any(np.any(gradient) for gradient in gradients)


@pytest.mark.clause("MIX-10", "ERR-4")
@given(case=adapters(), iterations=ITERATIONS)
def test_inputs_are_not_modified_and_the_same_inputs_give_the_same_bits(backend, case, iterations):
    first, second = every_call(backend, case, iterations), every_call(backend, case, iterations)
    for left, right in zip(first, second, strict=True):
        assert left.tobytes() == right.tobytes(), f"another result for the same inputs: {case}"


@pytest.mark.clause("MIX-10")
@given(case=adapters(), other=adapters())
def test_calls_share_no_state(backend, case, other):
    """A call between two equal ones changes nothing, nor do results change after they were returned."""
    held = backend.sinkhorn_projection(case.mix_logits.astype(backend.parameter_dtype), 3)
    copy = np.array(held)
    first = every_call(backend, case, 3)
    every_call(backend, other, 2)
    again = every_call(backend, case, 3)
    assert held.tobytes() == copy.tobytes()
    for left, right in zip(first, again, strict=True):
        assert left.tobytes() == right.tobytes(), (case, other)


@pytest.mark.clause("BACK-1")
@given(case=comparable_logits(leading=((3,),)), iterations=ITERATIONS)
def test_strided_inputs_are_read_by_index_not_by_memory(backend, case, iterations):
    logits = case.values.astype(backend.parameter_dtype)
    wide = np.zeros((*logits.shape[:-1], 2 * logits.shape[-1]), logits.dtype)
    wide[..., ::2] = logits
    column_major = np.asfortranarray(logits)
    tolerance = tolerance_for("sinkhorn_projection", backend.parameter_dtype, "forward")
    expected = backend.sinkhorn_projection(logits, iterations)
    for other in (wide[..., ::2], column_major):
        actual = backend.sinkhorn_projection(other, iterations)
        assert_close(actual, expected, tolerance, clause="BACK-1", scale=case.condition, context=(case, iterations))

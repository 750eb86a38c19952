"""The interface: attributes, shapes, dtypes, and calls that leave no trace, for arguments of many kinds.

What all functions are asked for small and special arguments is in test_process.py. Clauses: BACK-1, BACK-3, BACK-4,
BACK-7 to BACK-9, MIX-1, MIX-10, SINK-1.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from backends.interface import REQUIRED, REQUIRED_ATTRIBUTES, Gradients
from conformance.agreement import INPUTS, inputs_of
from conformance.strategies import ITERATIONS, LEADING_WITH_EMPTY, Adapter, Logits, adapters

DEVICES = ("cpu", "cuda", "rocm", "xpu", "mps", "tpu")


def arguments_of(backend, case):
    """x, S, gamma, A, a cotangent of y, and one of M."""
    x, logits, gate, basis = inputs_of(backend, case)
    square = np.ones_like(logits) + np.eye(case.logits.n, dtype=logits.dtype)
    return [x, logits, gate, basis, case.cotangent.astype(x.dtype), square]


def every_result(backend, arrays, iterations=3):
    """Of one call of each function, as the port hands them out."""
    x, logits, gate, basis, cotangent, square = arrays
    return [
        backend.sinkhorn_projection(logits, iterations),
        backend.sinkhorn_projection_vjp(logits, square, iterations),
        backend.adapter_forward(x, logits, gate, basis, iterations),
        *backend.adapter_vjp(x, logits, gate, basis, cotangent, iterations),
    ]


def bits_of(results):
    return [np.asarray(result).tobytes() for result in results]


@pytest.mark.clause("BACK-1")
def test_attributes(backend):
    assert isinstance(backend.name, str)
    assert isinstance(backend.version, str)
    assert isinstance(backend.device, str)
    assert np.dtype(backend.parameter_dtype).kind == "f"
    assert all(callable(getattr(backend, function)) for function in REQUIRED)
    assert type(getattr(backend, "thread_safe", True)) is bool, "BACK-11"


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


@pytest.mark.clause("MIX-10", "BACK-7", "BACK-9", "ERR-4")
@given(case=adapters(), iterations=ITERATIONS)
def test_inputs_are_not_modified_and_the_same_inputs_give_the_same_bits(backend, case, iterations):
    found = []
    for _ in range(2):
        arrays = arguments_of(backend, case)
        before = bits_of(arrays)
        found.append(bits_of(every_result(backend, arrays, iterations)))
        assert bits_of(arrays) == before, f"MIX-10: an input was modified for {case}"
    assert found[0] == found[1], f"another result for the same inputs: {case}"


@pytest.mark.clause("MIX-10", "BACK-8", "BACK-9")
@given(case=adapters(), other=adapters())
def test_calls_share_no_state(backend, case, other):
    """A call between two equal ones changes nothing, nor do results change after they were returned."""
    arrays = arguments_of(backend, case)
    held = every_result(backend, arrays)
    first = bits_of(held)
    every_result(backend, arguments_of(backend, other), 2)
    every_result(backend, [array + np.ones_like(array) for array in arrays])  # of these shapes
    assert bits_of(held) == first, f"BACK-8: a result was changed by a later call: {case}"
    assert bits_of(every_result(backend, arguments_of(backend, case))) == first, (case, other)


@pytest.mark.clause("BACK-9")
@given(case=adapters())
def test_a_gradient_is_that_of_its_own_arguments(backend, case):
    """And not of the forward pass before it, which was of other values in the same sizes."""
    inputs, cotangent = inputs_of(backend, case), case.cotangent.astype(backend.parameter_dtype)
    first = bits_of(backend.adapter_vjp(*inputs, cotangent, 3))
    other = replace(case, logits=replace(case.logits, seed=case.logits.seed ^ 1), seed=case.seed ^ 1)
    backend.adapter_forward(*inputs_of(backend, other), 3)
    assert bits_of(backend.adapter_vjp(*inputs, cotangent, 3)) == first, (case, other)


@pytest.mark.clause("BACK-7")
@given(case=adapters())
def test_an_array_changed_in_place_is_read_anew(backend, case):
    """An optimizer changes parameters in place: a result kept for the same array would be a stale one."""
    arrays = [np.array(array) for array in arguments_of(backend, case)]
    every_result(backend, arrays)
    for seed, array in enumerate(arrays):
        array += np.random.default_rng(seed).standard_normal(array.shape).astype(array.dtype)
    again = bits_of(every_result(backend, arrays))
    assert again == bits_of(every_result(backend, [np.array(array) for array in arrays])), case


@pytest.mark.clause("BACK-4", "ERR-3")
def test_device_is_the_one_that_the_name_promises(backend):
    promised = backend.name.rpartition("-")[2]
    if promised not in DEVICES:
        pytest.skip(f"the name {backend.name} promises no device")
    assert backend.device.lower().startswith(promised), f"BACK-4: {backend.name} computes on {backend.device}"


@pytest.mark.clause("BACK-1", "BACK-4")
def test_a_call_does_not_change_what_a_port_says_of_itself(backend):
    """A port that falls back to another device in the middle of a run does not do so in silence."""
    fields = (*REQUIRED_ATTRIBUTES, "x_dtypes", "arrays", "thread_safe")
    before = [str(getattr(backend, field, None)) for field in fields]
    case = Adapter(Logits("normal", 1.0, 3, (), 7), 2, 4, (2, 3), 0.5, 1.0, 1.0, False, 8)
    every_result(backend, arguments_of(backend, case))
    assert [str(getattr(backend, field, None)) for field in fields] == before

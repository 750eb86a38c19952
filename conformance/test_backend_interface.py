"""The interface: attributes, shapes, dtypes, and calls that leave no trace, for arguments of many kinds.

What all functions are asked for small and special arguments is in test_process.py. Clauses: BACK-1, BACK-3, BACK-4,
BACK-7 to BACK-9, MIX-1, MIX-10, SINK-1.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from backends.interface import REQUIRED, REQUIRED_ATTRIBUTES, Gradients
from conformance.agreement import (
    INPUTS,
    assume_settled,
    gradient_scales,
    inputs_of,
    mixing_cotangent,
)
from conformance.compare import assert_within
from conformance.strategies import (
    ITERATIONS,
    LEADING_WITH_EMPTY,
    SEEDS,
    Adapter,
    Logits,
    adapters,
)
from conformance.tolerances import tolerance_for

DEVICES = ("cpu", "cuda", "rocm", "xpu", "mps", "tpu")


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
    first, second = every_call(backend, case, iterations), every_call(backend, case, iterations)
    for left, right in zip(first, second, strict=True):
        assert left.tobytes() == right.tobytes(), f"another result for the same inputs: {case}"


@pytest.mark.clause("MIX-10", "BACK-8", "BACK-9")
@given(case=adapters(), other=adapters())
def test_calls_share_no_state(backend, case, other):
    """A call between two equal ones changes nothing, nor do results change after they were returned."""
    inputs = inputs_of(backend, case)
    held = [
        backend.sinkhorn_projection(inputs[1], 3),
        backend.sinkhorn_projection_vjp(inputs[1], inputs[1], 3),
        backend.adapter_forward(*inputs, 3),
        *backend.adapter_vjp(*inputs, inputs[0], 3),
    ]
    copies = [np.array(result) for result in held]
    first = every_call(backend, case, 3)
    every_call(backend, other, 2)
    every_result(backend, [*(array + np.ones_like(array) for array in inputs), inputs[0], inputs[1]])  # of these shapes
    for result, copy in zip(held, copies, strict=True):
        assert np.asarray(result).tobytes() == copy.tobytes(), f"BACK-8: a result was changed by a later call: {case}"
    again = every_call(backend, case, 3)
    for left, right in zip(first, again, strict=True):
        assert left.tobytes() == right.tobytes(), (case, other)


@pytest.mark.clause("BACK-9")
@given(case=adapters())
def test_a_gradient_is_that_of_its_own_arguments(backend, case):
    """And not of the forward pass before it, which was of other values in the same sizes."""
    inputs, cotangent = inputs_of(backend, case), case.cotangent.astype(backend.parameter_dtype)
    first = backend.adapter_vjp(*inputs, cotangent, 3)
    other = replace(case, logits=replace(case.logits, seed=case.logits.seed ^ 1), seed=case.seed ^ 1)
    backend.adapter_forward(*inputs_of(backend, other), 3)
    again = backend.adapter_vjp(*inputs, cotangent, 3)
    for left, right in zip(first, again, strict=True):
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes(), (case, other)


@pytest.mark.clause("BACK-7")
@given(case=adapters(), other=adapters())
def test_an_array_changed_in_place_is_read_anew(backend, case, other):
    """An optimizer changes parameters in place: a result kept for the same array would be a stale one."""
    inputs = inputs_of(backend, case)
    arrays = [*map(np.array, inputs), case.cotangent.astype(inputs[0].dtype), np.array(inputs[1])]
    every_result(backend, arrays)
    for array, seed in zip(arrays, range(len(arrays)), strict=True):
        changed = array + np.random.default_rng(seed).standard_normal(array.shape).astype(array.dtype)
        np.copyto(array, changed)
    again = every_result(backend, arrays)
    fresh = every_result(backend, [np.array(array) for array in arrays])
    assert all(left.tobytes() == right.tobytes() for left, right in zip(again, fresh, strict=True)), (case, other)


@pytest.mark.clause("BACK-1", "BACK-3")
@pytest.mark.parametrize("relayout", ["every_second_of_a_wider_array", "column_major", "backwards_in_memory"])
@given(case=adapters(leading=((2, 3),)), iterations=ITERATIONS, seed=SEEDS)
def test_strided_inputs_are_read_by_index_not_by_memory(backend, relayout, case, iterations, seed):
    """Up to rounding, as a library may sum in the order of memory."""
    arrays = [*inputs_of(backend, case), case.cotangent.astype(backend.parameter_dtype)]
    square = np.random.default_rng(seed).standard_normal(case.mix_logits.shape).astype(np.float32)
    arrays.append(square.astype(backend.parameter_dtype))
    assume_settled(backend, case.logits, square, iterations)
    assume_settled(backend, case.logits, mixing_cotangent(case, iterations), iterations)
    strided = [RELAYOUTS[relayout](array) if array.ndim else array for array in arrays]
    assert all(np.array_equal(left, right) for left, right in zip(arrays, strided, strict=True))
    x, upstream, condition = np.float64(arrays[0]), np.float64(arrays[4]), case.logits.condition
    scales = gradient_scales(case, x, upstream)
    sizes = [condition, condition * np.abs(square).max(), condition * np.linalg.norm(x, axis=-1, keepdims=True)]
    everything = zip(
        every_result(backend, arrays, iterations),
        every_result(backend, strided, iterations),
        [*sizes, *(scales[name] for name in INPUTS)],
        [*ROWS, *((f"adapter {name}", "gradient") for name in INPUTS)],
        strict=True,
    )
    for expected, actual, scale, (operation, direction) in everything:
        tolerance = tolerance_for(operation, backend.parameter_dtype, direction)
        context = (operation, direction, case, iterations, seed)
        assert_within(actual, expected, tolerance, clause="BACK-3", scale=scale, context=context)


def every_result(backend, arrays, iterations=3):
    """Of all four functions. ``arrays``: x, S, gamma, A, a cotangent of y, and one of M."""
    x, logits, gate, basis, cotangent, square = arrays
    return [
        np.array(backend.sinkhorn_projection(logits, iterations)),
        np.array(backend.sinkhorn_projection_vjp(logits, square, iterations)),
        np.array(backend.adapter_forward(x, logits, gate, basis, iterations)),
        *map(np.array, backend.adapter_vjp(x, logits, gate, basis, cotangent, iterations)),
    ]


ROWS = (("sinkhorn_projection", "forward"), ("sinkhorn_projection", "gradient"), ("adapter y - x", "forward"))
RELAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "every_second_of_a_wider_array": lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
    "column_major": np.asfortranarray,
    "backwards_in_memory": lambda array: np.ascontiguousarray(array[..., ::-1])[..., ::-1],
}


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
    every_call(backend, Adapter(Logits("normal", 1.0, 3, (), 7), 2, 4, (2, 3), 0.5, 1.0, 1.0, False, 8), 3)
    assert [str(getattr(backend, field, None)) for field in fields] == before

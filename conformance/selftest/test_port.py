"""A port in Python that is not what the interface says is one clear error; and what lists cannot say, the border says.

Clauses: BACK-1, BACK-3, BACK-6, ERR-2.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from backends.interface import Gradients
from backends.port import Port
from conformance.selftest.port import NumpyPort
from reference.errors import BackendError, ShapeError

LOGITS = np.eye(3, dtype=np.float32)
ADAPTER = (np.ones((2, 4), np.float32), LOGITS, np.zeros((), np.float32), np.ones((3, 1, 4), np.float32))


def port_with(**changed):
    return Port(type("Changed", (NumpyPort,), changed)(), "my:port")


def calls(port):
    """Every function of a port, by its name."""
    cotangent = ADAPTER[0]
    return {
        "sinkhorn_projection": lambda: port.sinkhorn_projection(LOGITS, 3),
        "sinkhorn_projection_vjp": lambda: port.sinkhorn_projection_vjp(LOGITS, LOGITS, 3),
        "adapter_forward": lambda: port.adapter_forward(*ADAPTER, 3),
        "adapter_vjp": lambda: port.adapter_vjp(*ADAPTER, cotangent, 3),
        "load_state": lambda: port.load_state(b""),
        "save_state": lambda: port.save_state(LOGITS[None], np.zeros(1), ADAPTER[3][None], 3),
        "adapter_autodiff": lambda: port.adapter_autodiff(*ADAPTER, cotangent, 3),
    }


@pytest.mark.clause("BACK-1", "BACK-6", "ERR-2")
@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("x_dtypes", "float32"),
        ("x_dtypes", ("single",)),
        ("x_dtypes", (None,)),
        ("x_dtypes", 32),
        ("arrays", "tensors"),
        ("arrays", None),
    ],
)
def test_an_attribute_that_is_none_is_one_clear_error(attribute, value):
    port = NumpyPort()
    setattr(port, attribute, value)
    with pytest.raises(BackendError, match=rf"my:port, {attribute}: got .*allowed: .*Try: "):
        Port(port, "my:port")


@pytest.mark.clause("BACK-1")
@pytest.mark.parametrize("value", ["float16", "nonsense", None, 7, np.int32, object()])
def test_a_dtype_of_parameters_that_is_none_is_one_clear_error(value):
    port = NumpyPort()
    port.parameter_dtype = value
    with pytest.raises(BackendError, match=r"parameter_dtype: got .*float64, float32"):
        Port(port, "my:port")


@pytest.mark.clause("BACK-1")
@pytest.mark.parametrize("value", ["float32", np.float32, np.dtype("float32")])
def test_a_dtype_may_be_a_name_or_a_type(value):
    port = NumpyPort()
    port.parameter_dtype = value
    assert Port(port, "my:port").parameter_dtype == np.float32


@pytest.mark.clause("BACK-3", "ERR-2")
@pytest.mark.parametrize("arrays", ["numpy", "lists"])
@pytest.mark.parametrize(
    "result",
    [None, "0.5", [[1.0], [1.0, 2.0]], [[None]], {"a": 1}, [1j], [10**400], object()],
    ids=lambda r: "object" if type(r) is object else str(r),
)
@pytest.mark.parametrize("function", [*calls(None)])
def test_a_result_that_is_none_is_one_clear_error(function, result, arrays):
    port = port_with(arrays=arrays, **{function: lambda *_: result})
    with pytest.raises(BackendError, match=rf"my:port, {function}.*: got .*allowed: .*Try: "):
        calls(port)[function]()


@pytest.mark.clause("BACK-3")
def test_a_result_is_handed_on_without_a_copy():
    kept = np.eye(3, dtype=np.float32)
    port = port_with(sinkhorn_projection=lambda *_: kept)
    result = port.sinkhorn_projection(LOGITS, 3)
    kept[:] = 7
    assert result.tolist() == kept.tolist()  # a port that changes it later is seen to do so (BACK-3)


@pytest.mark.clause("BACK-1")
def test_gradients_may_be_named_or_in_order():
    parts = NumpyPort().adapter_vjp(*ADAPTER, ADAPTER[0], 3)
    for given in (parts, tuple(parts), list(parts), parts._asdict()):
        result = port_with(adapter_vjp=lambda *_, given=given: given).adapter_vjp(*ADAPTER, ADAPTER[0], 3)
        assert isinstance(result, Gradients)
        assert all(left.tobytes() == right.tobytes() for left, right in zip(result, parts, strict=True))


@pytest.mark.clause("BACK-3")
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_port_of_lists_is_given_numbers_and_results_get_the_dtypes(dtype):
    given: list[object] = []

    def forward(self, *inputs):
        given.extend(inputs)
        return [[1.0, 1.0 / 3.0, 1e6, 0.0]] * 2

    port = port_with(arrays="lists", adapter_forward=forward)
    x, *parameters = ADAPTER
    y = port.adapter_forward(x.astype(dtype), *parameters, np.int64(3))
    assert y.dtype == dtype
    assert y[0, 1] == np.asarray(1.0 / 3.0).astype(dtype)
    assert [type(value) for value in given] == [list, list, float, list, int]
    assert [type(value) for value in np.asarray(given[0], object).ravel()] == 8 * [float]


@pytest.mark.clause("BACK-3", "SINK-1")
@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 3, 3)])
def test_an_empty_batch_of_lists_keeps_its_shape(shape):
    port = port_with(arrays="lists", sinkhorn_projection=lambda self, logits, k: logits)
    assert port.sinkhorn_projection(np.zeros(shape), 3).shape == shape


@pytest.mark.clause("BACK-3", "SINK-1", "MIX-1")
def test_a_wrong_shape_that_a_list_cannot_show_is_refused():
    """[] may be an empty batch or a matrix without rows; the port could not know."""
    port = port_with(arrays="lists", **{name: lambda *_: [] for name in calls(None)})
    x, logits, gate, basis = ADAPTER
    for shape in [(0,), (0, 0), (0, 3), (0, 3, 4), (2, 0), (4, 0, 0)]:
        with pytest.raises(ShapeError, match="mix_logits"):
            port.sinkhorn_projection(np.zeros(shape), 3)
    with pytest.raises(ShapeError, match="cotangent"):
        port.sinkhorn_projection_vjp(np.zeros((0, 3, 3)), np.zeros((0, 3, 4)), 3)
    for tokens in (np.zeros((0, 5)), np.zeros(0)):
        with pytest.raises(ShapeError, match="x"):
            port.adapter_forward(tokens, logits, gate, basis, 3)
    with pytest.raises(ShapeError, match="cotangent"):
        port.adapter_vjp(x[:0], logits, gate, basis, np.zeros((0, 5)), 3)
    with pytest.raises(ShapeError):
        port.adapter_forward(x, logits, gate, basis[:0], 3)

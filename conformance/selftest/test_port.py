"""A port in Python that is not what the interface says is one clear error; and what lists cannot say, the border says.

Clauses: BACK-1, BACK-3, BACK-6, BACK-11, BACK-12, ERR-2.
"""

import signal
import threading
import time

import ml_dtypes
import numpy as np
import pytest

from backends.interface import Gradients
from backends.port import Port
from conformance.agreement import fails, fails_or_all_nan
from conformance.plugin import _offers
from conformance.selftest.port import NumpyPort
from conformance.selftest.programs import ROOT, run
from reference.errors import BackendError, PortResultError, PortStoppedError, ShapeError

LOGITS = np.eye(3, dtype=np.float32)
MOMENT = np.eye(3)
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
        "limit_displacement": lambda: port.limit_displacement(*ADAPTER[1:], *ADAPTER[1:], 0.1, 3),
        "stream_moment": lambda: port.stream_moment(ADAPTER[0], ADAPTER[3]),
        "limit_data_displacement": lambda: port.limit_data_displacement(*ADAPTER[1:], *ADAPTER[1:], MOMENT, 5, 0.1, 3),
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
        ("thread_safe", None),
        ("thread_safe", "no"),
        ("device", None),
        ("device", " "),
        ("device", lambda: "cpu"),
        ("name", ""),
        ("version", None),
    ],
)
def test_an_attribute_that_is_none_is_one_clear_error(attribute, value):
    port = NumpyPort()
    setattr(port, attribute, value)
    with pytest.raises(BackendError, match=rf"my:port, {attribute}: got .*allowed: .*Try: "):
        Port(port, "my:port")


@pytest.mark.clause("BACK-1")
@pytest.mark.parametrize("value", ["float16", "complex128", "nonsense", None, 7, np.int32, object()])
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


class Unreadable:
    """What NumPy asks for its numbers, and gets an end of the process or of the test instead."""

    def __init__(self, error):
        self.error = error

    def __array__(self, *_, **__):
        raise self.error


NO_RESULTS = {
    **{str(r): r for r in (None, "0.5", [[1.0], [1.0, 2.0]], [[None]], {"a": 1}, [1j], [10**400], True, [[True, 1.0]])},
    "object": object(),
    "iterator": (number for number in [1.0]),
    "array of objects": np.asarray([None, 1.0]),
    "array of truth values": np.ones((3, 3), bool),
    "complex": np.ones((3, 3), np.complex64),
    "masked": np.ma.masked_equal(np.eye(3, dtype=np.float32), 0),
    "dates": np.zeros((3, 3), "datetime64[s]"),
    **{type(e).__name__: Unreadable(e) for e in (ValueError("x"), SystemExit(0), pytest.skip.Exception("x"))},
}


@pytest.mark.clause("BACK-1", "BACK-3", "ERR-2")
@pytest.mark.parametrize("arrays", ["numpy", "lists"])
@pytest.mark.parametrize("result", NO_RESULTS)
@pytest.mark.parametrize("function", [*calls(None)])
def test_a_result_that_is_none_is_one_clear_error(function, result, arrays):
    """And no refusal: it is none where the input is to be refused either. Nor is a member of a result that is none."""
    members = {"load_state": 4, "adapter_vjp": 4, "adapter_autodiff": 4}
    members |= {"limit_displacement": 4, "stream_moment": 2, "limit_data_displacement": 4}
    value = NO_RESULTS[result]
    for returned in (value, (value,) * members[function]) if function in members else (value,):
        port = port_with(arrays=arrays, **{function: lambda *_, returned=returned: returned})
        with pytest.raises(PortResultError, match=rf"my:port, {function}.*: got .*allowed: .*Try: "):
            calls(port)[function]()
        for judge in (fails, fails_or_all_nan):
            with pytest.raises(PortResultError, match=function):
                judge(calls(port)[function])


def changed(result, change):
    """Each array of a result, changed."""
    if isinstance(result, tuple):
        return tuple(change(part) if isinstance(part, np.ndarray) else part for part in result)
    return change(result)


@pytest.mark.clause("BACK-1", "ERR-2")
@pytest.mark.parametrize(
    "change",
    [
        lambda a: a[None],
        lambda a: np.stack([a, a], axis=-1),
        lambda a: a.astype(np.float64),
        lambda a: a.astype(np.float16),
        lambda a: a.astype(np.longdouble),
        lambda a: a.astype(np.int64),
        lambda a: a.astype(a.dtype.newbyteorder()),
    ],
    ids=["axis before", "axis behind", "float64", "float16", "longdouble", "int64", "byte order"],
)
@pytest.mark.parametrize(
    "function", ["sinkhorn_projection", "sinkhorn_projection_vjp", "adapter_forward", "adapter_vjp"]
)
def test_a_result_of_another_shape_or_dtype_is_one_clear_error(function, change):
    right = calls(NumpyPort())[function]()
    port = port_with(**{function: lambda *_: changed(right, change)})
    with pytest.raises(
        PortResultError, match=rf"my:port, {function}.*: got an array .*; allowed: an array .* of float32"
    ):
        calls(port)[function]()


@pytest.mark.clause("BACK-1")
@pytest.mark.parametrize("package", ["subclass", "torch", "jax", "read-only", "scalar"])
def test_what_numpy_reads_as_the_array_is_a_result(package):
    """A subclass is a plain array from then on; tensors of frameworks are read where they lie."""
    right = np.eye(3, dtype=np.float32)
    if package == "scalar":
        gradients = NumpyPort().adapter_vjp(*ADAPTER, ADAPTER[0], 3)
        scalar = gradients._asdict() | {"gate_logit": np.float32(0.5)}
        result = port_with(adapter_vjp=lambda *_: scalar).adapter_vjp(*ADAPTER, ADAPTER[0], 3).gate_logit
        assert (type(result), result.shape, result.dtype) == (np.ndarray, (), np.float32)
        return
    if package == "torch":
        value = pytest.importorskip("torch").eye(3)
    elif package == "jax":
        value = pytest.importorskip("jax").numpy.eye(3, dtype="float32")
    elif package == "subclass":
        value = right.view(type("Mine", (np.ndarray,), {}))
    else:
        value = right.copy()
        value.flags.writeable = False
    result = port_with(sinkhorn_projection=lambda *_: value).sinkhorn_projection(LOGITS, 3)
    assert type(result) is np.ndarray
    assert result.tobytes() == right.tobytes()


@pytest.mark.clause("BACK-1", "ERR-2")
def test_a_tensor_that_numpy_cannot_read_is_one_clear_error():
    torch = pytest.importorskip("torch")
    for value in (torch.eye(3).requires_grad_(), torch.eye(3, dtype=torch.bfloat16), torch.eye(3, device="meta")):
        port = port_with(sinkhorn_projection=lambda *_, value=value: value)
        with pytest.raises(PortResultError, match=r"sinkhorn_projection: got a result of type Tensor"):
            port.sinkhorn_projection(LOGITS, 3)


@pytest.mark.clause("BACK-1", "BACK-4", "ERR-3")
@pytest.mark.parametrize(
    ("field", "value"), [("device", "cpu"), ("parameter_dtype", "float64"), ("thread_safe", False)]
)
@pytest.mark.parametrize("function", ["sinkhorn_projection", "load_state"])
def test_what_a_port_says_of_itself_does_not_change(field, value, function):
    """As where it falls back to another device in the middle of a run."""

    def call(self, *_):
        setattr(self, field, value)
        return LOGITS

    port = port_with(device="cuda:0", **{function: call})
    with pytest.raises(
        PortResultError, match=rf"{function}, after which {field}: got {value}; allowed: .*as before it"
    ):
        calls(port)[function]()


@pytest.mark.clause("BACK-1", "ERR-2")
@pytest.mark.parametrize("iterations", [3.0, True, None, "3", np.float64(3)])
def test_a_state_whose_k_is_no_integer_is_one_clear_error(iterations):
    arrays = LOGITS[None], np.zeros(1, np.float32), ADAPTER[3][None]
    port = port_with(load_state=lambda *_: (*arrays, iterations))
    with pytest.raises(PortResultError, match=r"load_state, iterations: got .*allowed: an integer"):
        port.load_state(b"")
    assert port_with(load_state=lambda *_: (*arrays, np.int64(3))).load_state(b"").iterations == 3


@pytest.mark.clause("BACK-11")
def test_a_port_may_say_that_it_is_not_thread_safe():
    assert port_with().thread_safe is True
    assert port_with(thread_safe=False).thread_safe is False
    assert "not thread-safe" in _offers(port_with(thread_safe=False))  # in the header of a run
    assert "thread" not in _offers(port_with())


@pytest.mark.clause("BACK-12", "MIX-10")
def test_numbers_in_lists_are_rounded_once():
    """By way of float32 the first would lie halfway between two numbers of bfloat16, and be rounded to the even one."""
    answers = {ml_dtypes.bfloat16: (1 + 2**-8 + 2**-40, 1 + 2**-7), np.float16: (1 + 2**-11 + 2**-40, 1 + 2**-10)}
    for dtype, (answered, expected) in answers.items():
        port = port_with(arrays="lists", adapter_forward=lambda *_, answered=answered: [[answered] * 4] * 2)
        x, *parameters = ADAPTER
        y = port.adapter_forward(x.astype(dtype), *parameters, 3)
        assert y.astype(np.float64).tolist() == [[expected] * 4] * 2


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


@pytest.mark.clause("BACK-1", "ERR-2")
@pytest.mark.parametrize("hang", ["time.sleep", "loop", "lock", "swallows"])
def test_a_call_that_does_not_come_back_is_one_clear_error(hang, monkeypatch):
    """Whatever it waits for, as long as Python can interrupt it, and whatever it makes of the interrupt."""

    def loop():
        while True:
            pass

    def swallow():
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            raise ValueError("interrupted") from None

    waits = {"time.sleep": lambda: time.sleep(60), "loop": loop, "lock": threading.Event().wait, "swallows": swallow}
    monkeypatch.setenv("CRMA_PORT_TIMEOUT", "0.3")
    port = port_with(adapter_forward=lambda *_: waits[hang]())
    started = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which pytest, in the background, ignores
    try:
        with pytest.raises(PortStoppedError, match=r"my:port, adapter_forward: got no result within 0.3 s; .*Try: "):
            port.adapter_forward(*ADAPTER, 3)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 10
    assert port.sinkhorn_projection(LOGITS, 3).shape == (3, 3)  # nothing is left that interrupts the next call
    time.sleep(1)


@pytest.mark.clause("BACK-1", "ERR-2")
def test_a_loop_is_ended_where_the_signal_is_ignored(monkeypatch):
    """As in a program that a shell has started in the background."""

    def loop(*_):
        while True:
            time.sleep(0.01)

    monkeypatch.setenv("CRMA_PORT_TIMEOUT", "0.3")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(PortStoppedError, match="no result within"):
            port_with(adapter_forward=loop).adapter_forward(*ADAPTER, 3)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.clause("BACK-1")
@pytest.mark.parametrize("seconds", ["soon", "0", "-1", "nan", "inf"])
def test_a_time_that_is_none_is_refused(seconds, monkeypatch):
    monkeypatch.setenv("CRMA_PORT_TIMEOUT", seconds)
    with pytest.raises(BackendError, match="CRMA_PORT_TIMEOUT: got"):
        port_with()


WAITS = """
import signal, threading
from backends.port import Port
from conformance.selftest.port import NumpyPort
port = NumpyPort()
port.sinkhorn_projection = lambda *_: threading.Event().wait()
signal.signal(signal.SIGINT, signal.SIG_IGN)
Port(port, "my:port").sinkhorn_projection(__import__("numpy").zeros((2, 2)), 3)
"""


@pytest.mark.clause("BACK-1", "ERR-2")
def test_a_wait_that_nothing_interrupts_ends_the_process():
    """A lock, where the signal is ignored, or compiled code that starts its wait again."""
    done = run(ROOT, "-c", WAITS, timeout=60, CRMA_PORT_TIMEOUT="0.3")
    assert done.returncode == 4, done.stderr
    assert "ERROR: my:port, sinkhorn_projection: got no result within 0.3 s" in done.stderr
    assert "Traceback" not in done.stderr

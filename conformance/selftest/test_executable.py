"""An executable that behaves is a backend: arrays, files and refusals arrive. Clauses: BACK-3, BACK-5, BACK-6."""

import json
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

from backends.executable import PortRefusalError
from backends.interface import dtype_named
from conformance.selftest.programs import ECHO, LOGITS
from reference.errors import ConfigError, PortStoppedError

pytestmark = pytest.mark.clause("BACK-5")


@pytest.mark.clause("BACK-3")
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (2, 3, 4, 4), (0, 3, 3), (2, 0, 1, 1)])
def test_arrays_arrive_and_return_in_their_shape(started, shape):
    backend = started(ECHO)
    logits = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    result = backend.sinkhorn_projection(logits, 3)
    assert result.dtype == np.float32
    assert result.shape == shape
    assert result.tobytes() == logits.tobytes()


@pytest.mark.clause("BACK-3")
def test_numbers_that_json_does_not_have_arrive_and_return(started):
    values = np.asarray([[np.nan, np.inf], [-np.inf, 1e-38]], np.float32)
    np.testing.assert_array_equal(started(ECHO).sinkhorn_projection(values, 3), values)
    text = started('say({"id": number, "error": json.dumps(array)})')
    with pytest.raises(PortRefusalError, match='"NaN", "Infinity", "-Infinity"'):
        text.sinkhorn_projection(values, 3)


@pytest.mark.clause("BACK-3", "BACK-6")
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_y_has_the_dtype_of_x_and_parameters_their_own(started, dtype):
    backend = started(
        'names = ("x", "mix_logits", "gate_logit", "basis")\n'
        'say({"id": number, "result": arguments["x"] if function == "adapter_forward" else '
        "{name: arguments[name] for name in names}})",
        'DESCRIPTION["x_dtypes"] = ["float64", "float32", "float16", "bfloat16"]',
    )
    x, basis = np.linspace(-1, 1, 8).reshape(2, 4).astype(dtype), np.ones((3, 1, 4), np.float32)
    y = backend.adapter_forward(x, LOGITS, np.float32(0.5), basis, 3)
    assert (y.dtype, y.tobytes()) == (x.dtype, x.tobytes())
    gradients = backend.adapter_vjp(x, LOGITS, np.asarray(0.5, np.float32), basis, x, 3)
    assert [part.dtype for part in gradients] == [x.dtype] + 3 * [np.float32]
    assert gradients.gate_logit.shape == ()
    assert gradients.basis.shape == basis.shape


@pytest.mark.clause("BACK-12")
@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16"])
def test_a_request_names_the_dtype_of_each_array(started, name):
    """So that a program can round y itself; its numbers are exact."""
    backend = started(
        'say({"id": number, "error": json.dumps({k: v["dtype"] for k, v in arguments.items() if k != "iterations"})})',
        'DESCRIPTION["x_dtypes"] = ["float64", "float32", "float16", "bfloat16"]',
    )
    x = np.ones((2, 4)).astype(dtype_named(name))
    parameters = (LOGITS, np.asarray(0.5, np.float32), np.ones((3, 1, 4), np.float32))
    with pytest.raises(PortRefusalError) as refusal:
        backend.adapter_forward(x, *parameters, 3)
    named = {"x": name, "mix_logits": "float32", "gate_logit": "float32", "basis": "float32"}
    assert json.dumps(named)[:90] in str(refusal.value)


@pytest.mark.clause("BACK-12", "MIX-10")
@pytest.mark.parametrize(("dtype", "bits"), [(np.float16, 10), (ml_dtypes.bfloat16, 7)])
def test_an_answer_is_rounded_once_whatever_dtype_it_names(started, dtype, bits):
    """A little more than halfway between two numbers, which float32 would take for halfway."""
    number = 1 + 2.0 ** -(bits + 1) + 2.0**-40
    backend = started(
        f'say({{"id": number, "result": {{"shape": [1, 4], "dtype": "float64", "data": [{number!r}] * 4}}}})',
        'DESCRIPTION["x_dtypes"] = ["float16", "bfloat16"]',
    )
    x = np.ones((1, 4)).astype(dtype)
    y = backend.adapter_forward(x, LOGITS, np.asarray(0.5, np.float32), np.ones((3, 1, 4), np.float32), 3)
    assert y.astype(np.float64).tolist() == [[1 + 2.0**-bits] * 4]


@pytest.mark.clause("BACK-6")
def test_optional_functions_are_there_exactly_where_the_program_has_them(started):
    plain = started(ECHO)
    assert not hasattr(plain, "save_state")
    assert not hasattr(plain, "adapter_autodiff")
    saving = started('say({"id": number, "result": {"data": "AQID"}})', 'DESCRIPTION["optional"] = ["save_state"]')
    assert saving.save_state(LOGITS[None], np.zeros(1), np.ones((1, 3, 1, 3)), 3) == b"\1\2\3"
    assert not hasattr(saving, "adapter_autodiff")


@pytest.mark.clause("BACK-5", "BACK-6")
@pytest.mark.parametrize(
    ("budget", "sent"),
    [
        *((np.float64(0.25), 0.25), (float("inf"), "Infinity"), (float("nan"), "NaN")),
        *((value, value) for value in (True, None, "1")),
    ],
)
def test_what_limits_is_asked_by_name_and_answers_a_fraction(started, budget, sent):
    """A budget that is no number arrives as it is, for the program to refuse."""
    offers = 'DESCRIPTION["optional"] = ["limit_displacement", "limit_data_displacement", "stream_moment"]'
    backend = started(
        'if function == "stream_moment":\n'
        '    say({"id": number, "result": {"total": arguments["x"], "tokens": 7}})\n'
        "else:\n"
        '    names = ["mix_logits", "gate_logit", "basis"]\n'
        '    budget = arguments["delta" if function == "limit_displacement" else "epsilon"]\n'
        '    answer = {name: arguments["anchor_" + name] for name in names}\n'
        f"    assert type(budget) is type({sent!r}) and budget == {sent!r}, budget\n"
        '    say({"id": number, "result": {**answer, "fraction": 0.5}})',
        offers,
    )
    anchor = (LOGITS, np.float32(2), np.ones((3, 1, 3), np.float32))
    state = tuple(np.zeros_like(array) for array in anchor)
    for found in (
        backend.limit_displacement(*anchor, *state, budget, 3),
        backend.limit_data_displacement(*anchor, *state, np.eye(3), np.int64(4), budget, 3),
    ):
        assert found.fraction == 0.5
        assert [part.tolist() for part in found[:3]] == [np.asarray(part).tolist() for part in anchor]
    moment = backend.stream_moment(LOGITS, anchor[2])
    assert moment.tokens == 7
    assert moment.total.dtype == np.float64
    assert np.array_equal(moment.total, LOGITS)


def test_state_files_arrive_whole(started):
    backend = started(
        "import base64\n"
        'length = [len(base64.b64decode(arguments["data"]))]\n'
        'logits, gates, bases = ({"shape": [1] * axes, "data": length} for axes in (3, 1, 4))\n'
        'say({"id": number, "result": {"mix_logits": logits, "gate_logits": gates, "bases": bases, "iterations": 7}})'
    )
    state = backend.load_state(bytes(range(256)) * 4)
    assert (state.mix_logits.tolist(), state.gate_logits.tolist(), state.iterations) == ([[[1024.0]]], [1024.0], 7)


def test_a_refusal_names_the_function_and_the_program_is_asked_again(started):
    backend = started('say({"id": number, "error": "too cold"} if number == 2 else {"id": number, "result": array})')
    with pytest.raises(PortRefusalError, match=r"sinkhorn_projection: got the refusal 'too cold'") as refusal:
        backend.sinkhorn_projection(LOGITS, 3)
    assert not isinstance(refusal.value, PortStoppedError)
    assert backend.sinkhorn_projection(LOGITS, 3).tolist() == LOGITS.tolist()


@pytest.mark.clause("SINK-2")
def test_iterations_arrive_as_they_are_where_json_can_say_it(started):
    backend = started('say({"id": number, "error": json.dumps(arguments["iterations"])})')
    for iterations, text in ((3, "3"), (np.int64(3), "3"), (0, "0"), (True, "true"), (2.5, "2.5"), ("3", '"3"')):
        with pytest.raises(PortRefusalError, match=f"refusal '{text}'"):
            backend.sinkhorn_projection(LOGITS, iterations)
    for none in (20.0, np.nan, np.inf, [3]):
        with pytest.raises(ConfigError, match="20, not 20"):
            backend.sinkhorn_projection(LOGITS, none)


def test_threads_that_ask_at_once_get_their_own_answers(started):
    backend = started(ECHO)
    matrices = [np.full((2, 2), k, np.float32) for k in range(200)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda matrix: backend.sinkhorn_projection(matrix, 3), matrices))
    np.testing.assert_array_equal(answers, matrices)


def test_messages_without_end_block_nobody(started):
    backend = started(f'sys.stderr.write("chatter " * 500_000 + chr(10)); sys.stderr.flush()\n{ECHO}')
    for _ in range(3):
        assert backend.sinkhorn_projection(LOGITS, 3).tolist() == LOGITS.tolist()


def test_a_large_request_is_read_slowly_and_answered_at_length(started):
    """4 MiB each way, with an answer that begins before the request is read: neither side may wait for the other."""
    backend = started(
        ECHO,
        "first = sys.stdin.readline()\n"
        'say({"id": json.loads(first)["id"], "result": DESCRIPTION})\n'
        'sys.stdout.write(" " * 4_000_000); sys.stdout.flush()\n'
        "slow = open(0, closefd=False)\n"
        "chunks = []\n"
        "while not chunks or chr(10) not in chunks[-1]:\n"
        "    time.sleep(0.001); chunks.append(os.read(0, 20_000).decode())\n"
        'request = json.loads("".join(chunks))\n'
        'say({"id": request["id"], "result": request["arguments"]["mix_logits"]})',
    )
    logits = np.random.default_rng(1).normal(size=(50, 64, 64)).astype(np.float32)
    assert backend.sinkhorn_projection(logits, 3).tobytes() == logits.tobytes()

"""An executable that misbehaves ends in one clear error, whatever it does. Clauses: BACK-1, BACK-3, BACK-5."""

import time
from functools import partial

import numpy as np
import pytest

from conformance.agreement import fails
from conformance.selftest.programs import ECHO, LOGITS, assert_stops, has_ended
from reference.errors import PortResultError, PortStoppedError

pytestmark = pytest.mark.clause("BACK-5")


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("sys.exit(3)", ["an end with status 3 at sinkhorn_projection"]),
        ('raise RuntimeError("out of cheese")', ["status 1", "it said 'RuntimeError: out of cheese'"]),
        ("os.kill(os.getpid(), signal.SIGKILL)", ["an end by signal 9 (Killed)"]),
        ('sys.stdout.write(\'{"id": 2, "res\'); sys.stdout.flush(); sys.exit()', ["status 0", "line without end"]),
        ("os.close(1); time.sleep(60)", ["a closed standard output"]),
        ('print("Hello!", flush=True)', ["no line of JSON", "Hello!"]),
        ('print("", flush=True)', ["no line of JSON"]),
        ('print("[" * 200_000, flush=True)', ["no line of JSON"]),
        ("sys.stdout.buffer.write(bytes(range(128, 256)) + b'\\n'); sys.stdout.flush()", ["no line of JSON"]),
        ('print("x" * 100_000_000, flush=True)', ["no line of JSON", "xxx..."]),
        ('while True: sys.stdout.write("x" * 1_000_000)', ["more than 256 MiB"]),
        ("say(7)", ["without id"]),
        ('say({"result": array})', ["without id"]),
        ('say({"id": number})', ["without result and error"]),
        ('say({"id": number, "error": None})', ["neither result nor error"]),
        ('say({"id": number - 1, "result": array})', ["answer to request '1', where 2 was asked"]),
        ('say({"id": str(number), "result": array})', ["answer to request '2', where 2"]),
        ('say({"id": number == 2, "result": array})', ["answer to request 'true'"]),
        ('print(\'{"id": 2, "result": {"shape": [], "data": [NaN]}}\', flush=True)', ["NaN is not JSON"]),
    ],
)
def test_a_program_that_breaks_is_one_clear_error(started, body, parts):
    assert_stops(started(body), *parts)


@pytest.mark.parametrize(
    "body",
    [
        "time.sleep(60)",
        "sys.stdout.write('{\"id\": 2'); sys.stdout.flush(); time.sleep(60)",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
        "while True: sys.stderr.write(f'busy {time.time()}\\n' * 1000)",
        "import subprocess; subprocess.run(['sleep', '60'])",
    ],
)
def test_a_program_that_hangs_is_given_up(started, body):
    backend = started(body, seconds="1")
    before = time.monotonic()
    assert_stops(backend, "no answer within 1 s at sinkhorn_projection")
    assert time.monotonic() - before < 10


def test_a_program_that_stops_reading_is_given_up(started):
    never = "os.write(1, (json.dumps({'id': 1, 'result': DESCRIPTION}) + chr(10)).encode()); time.sleep(60)"
    backend = started(ECHO, never, seconds="1")
    assert_stops(backend, "no answer", call=lambda: backend.sinkhorn_projection(np.zeros((99, 64, 64)), 3))


def test_what_a_program_started_ends_with_it(started):
    backend = started(
        "import subprocess\nchild = subprocess.Popen(['sleep', '60'])\n"
        "sys.stderr.write(f'error {child.pid}'); sys.exit(1)"
    )
    with pytest.raises(PortStoppedError, match="status 1") as stopped:
        backend.sinkhorn_projection(LOGITS, 3)
    child = int(str(stopped.value.got).rpartition("error ")[2].rstrip("'"))
    assert has_ended(child), "the program's own child still runs"


@pytest.mark.parametrize(
    ("result", "part"),
    [
        ("7", "no object with shape and data"),
        ("None", "no object with shape and data"),
        ('{"shape": [3, 3]}', "no object with shape and data"),
        ('{"shape": 9, "data": [0] * 9}', "shape '9'"),
        ('{"shape": [-1, 3], "data": [0] * 9}', "shape '[-1, 3]'"),
        ('{"shape": [3.0, 3], "data": [0] * 9}', "shape '[3.0, 3]'"),
        ('{"shape": [True, 9], "data": [0] * 9}', "shape '[true, 9]'"),
        ('{"shape": [3, 3], "data": [0] * 8}', "8 numbers, where the shape [3, 3] has 9"),
        ('{"shape": [3, 3], "data": [[0] * 3] * 3}', "3 numbers"),
        ('{"shape": [3], "data": [[0], [0, 1], 0]}', "'[0]' in data"),
        ('{"shape": [1], "data": "0"}', "data '0'"),
        ('{"shape": [1], "data": None}', "data 'null'"),
        ('{"shape": [2], "data": [0, "1.5"]}', "'1.5' in data"),
        ('{"shape": [2], "data": [0, "nan"]}', "'nan' in data"),
        ('{"shape": [2], "data": [0, None]}', "'null' in data"),
        ('{"shape": [2], "data": [0, True]}', "'true' in data"),
        ('{"shape": [1], "data": [10 ** 400]}', "no float64"),
    ],
)
@pytest.mark.clause("BACK-3")
def test_a_result_that_is_no_array_is_one_clear_error(started, result, part):
    assert_stops(started(f'say({{"id": number, "result": {result}}})'), "sinkhorn_projection that is no array", part)


@pytest.mark.clause("BACK-3")
@pytest.mark.parametrize(
    ("result", "part"),
    [
        ("[array] * 4", "without mix_logits"),
        ('{"mix_logits": array, "gate_logits": array, "bases": array}', "without iterations"),
        ('{"mix_logits": array, "gate_logits": array, "bases": array, "iterations": 9.0}', "iterations is '9.0'"),
        ('{"mix_logits": array, "gate_logits": array, "bases": array, "iterations": True}', "iterations is 'true'"),
        ('{"mix_logits": array, "bases": array, "iterations": 9}', "without gate_logits"),
        ('{"mix_logits": 1, "gate_logits": array, "bases": array, "iterations": 9}', "no object with shape"),
    ],
)
def test_a_state_that_is_none_is_one_clear_error(started, result, part):
    backend = started(f'array = {{"shape": [], "data": [1]}}\nsay({{"id": number, "result": {result}}})')
    assert_stops(backend, "load_state", part, call=lambda: backend.load_state(b"1"))


@pytest.mark.clause("BACK-1")
@pytest.mark.parametrize("shape", [[9], [1, 3, 3], [3, 3, 1]])
def test_an_array_of_another_shape_is_no_result_and_no_refusal(started, shape):
    backend = started(f'say({{"id": number, "result": {{"shape": {shape}, "data": array["data"]}}}})')
    with pytest.raises(
        PortResultError, match=r"sinkhorn_projection: got an array .*allowed: an array \(3, 3\) of float32"
    ):
        fails(lambda: backend.sinkhorn_projection(LOGITS, 3))


def test_gradients_and_files_that_are_none_are_one_clear_error(started):
    arguments = (LOGITS, LOGITS, np.float32(0), np.ones((3, 1, 3)), LOGITS, 3)
    backend = started('say({"id": number, "result": {"x": array, "mix_logits": array}})')
    assert_stops(backend, "adapter_vjp without gate_logit", call=lambda: backend.adapter_vjp(*arguments))
    optional = 'DESCRIPTION["optional"] = ["save_state", "adapter_autodiff"]'
    other = started('say({"id": number, "result": {"data": "no base64!"}})', optional)
    save = (LOGITS[None], np.zeros(1), np.ones((1, 3, 1, 3)), 3)
    assert_stops(other, "data is no base64", call=lambda: other.save_state(*save))
    third = started('say({"id": number, "result": []})', optional)
    assert_stops(third, "adapter_autodiff without x", call=lambda: third.adapter_autodiff(*arguments))


def test_limits_that_are_none_are_one_clear_error(started):
    optional = 'DESCRIPTION["optional"] = ["limit_displacement", "stream_moment"]'
    state, answered = (
        (LOGITS, np.float32(0), np.ones((3, 1, 3))),
        '"mix_logits": array, "gate_logit": array, "basis": array',
    )
    for fraction in ('"all"', "True", "None"):
        backend = started(f'say({{"id": number, "result": {{{answered}, "fraction": {fraction}}}}})', optional)
        call = partial(backend.limit_displacement, *state, *state, 0.1, 3)
        assert_stops(backend, "limit_displacement whose fraction is", call=call)
    backend = started('say({"id": number, "result": {"total": array, "tokens": 2.5}})', optional)
    assert_stops(backend, "tokens is '2.5'", call=lambda: backend.stream_moment(LOGITS, np.ones((3, 1, 3))))


@pytest.mark.clause("BACK-1")
@pytest.mark.parametrize(
    ("description", "parts"),
    [
        ("DESCRIPTION = 7", ["no attributes"]),
        ('del DESCRIPTION["device"]', ["device 'null', which is no text"]),
        ('DESCRIPTION["name"] = ""', ["name ''"]),
        ('DESCRIPTION["version"] = 3', ["version '3'"]),
        ('DESCRIPTION["parameter_dtype"] = "float128"', ["float128", "float32, float64"]),
        ('DESCRIPTION["parameter_dtype"] = "float16"', ["float16", "float32, float64"]),
        ('DESCRIPTION["x_dtypes"] = "float32"', ["x_dtypes 'float32'"]),
        ('DESCRIPTION["x_dtypes"] = ["single"]', ["single", "bfloat16"]),
        ('DESCRIPTION["optional"] = ["load_stat"]', ["load_stat", "save_state"]),
        ('DESCRIPTION["optional"] = None', ["optional 'null'"]),
        ("sys.exit(5)", ["status 5 at describe"]),
        ('sys.exit("no GPU here")', ["status 1 at describe", "no GPU here"]),
        ("print('Loading...', flush=True)", ["no line of JSON", "Loading..."]),
    ],
)
def test_a_description_that_is_none_is_one_clear_error(started, description, parts):
    with pytest.raises(PortStoppedError) as stopped:
        started(ECHO, description)
    for part in parts:
        assert part in str(stopped.value)

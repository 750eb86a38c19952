"""An executable that misbehaves ends in one clear error, whatever it does. Clauses: BACK-2, BACK-3, BACK-5, ERR-2."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from backends import load_backend
from backends.executable import PortRefusalError, is_command
from reference.errors import BackendError, ConfigError, PortStoppedError

pytestmark = pytest.mark.clause("BACK-5")

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, os, signal, sys, time

def say(value):
    print(json.dumps(value), flush=True)

DESCRIPTION = {"name": "fake-cpu", "version": str(os.getpid()), "device": "cpu", "parameter_dtype": "float32"}
for line in sys.stdin:
    request = json.loads(line)
    number, function, arguments = request["id"], request["function"], request["arguments"]
    array = arguments.get("mix_logits")
    if function == "describe":
        say({"id": number, "result": DESCRIPTION})
        continue
    BODY
"""
ECHO = 'say({"id": number, "result": array})'
LOGITS = np.eye(3, dtype=np.float32)


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A backend from the lines that a program runs for each request; what is started is stopped again."""

    def start(body, description="", seconds="20"):
        monkeypatch.setenv("CRMA_EXECUTABLE_TIMEOUT", seconds)
        text = PROGRAM.replace("BODY", "\n    ".join(body.splitlines()))
        if description:
            text = text.replace("\nfor line", f"\n{description}\nfor line")
        path = tmp_path / "program.py"
        path.write_text(text)
        return load_backend(f"{sys.executable} {path}")

    return start


def is_gone(pid):
    """Ended and reaped: neither running nor a zombie."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def assert_stops(backend, *parts, call=None):
    """One error that holds the parts; then the program is gone, and every further call gives the same at once."""
    call = call or (lambda: backend.sinkhorn_projection(LOGITS, 3))
    with pytest.raises(PortStoppedError) as first:
        call()
    message = str(first.value)
    for part in (*parts, "allowed: one line of JSON", "Try:"):
        assert part in message
    assert len(message) < 1000
    assert is_gone(int(backend.version))
    before = time.monotonic()
    for further in (call, lambda: backend.load_state(b"")):
        with pytest.raises(PortStoppedError) as again:
            further()
        assert str(again.value) == message
    assert time.monotonic() - before < 0.5


# -- a program that behaves --


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


@pytest.mark.clause("BACK-6")
def test_optional_functions_are_there_exactly_where_the_program_has_them(started):
    plain = started(ECHO)
    assert not hasattr(plain, "save_state")
    assert not hasattr(plain, "adapter_autodiff")
    saving = started('say({"id": number, "result": {"data": "AQID"}})', 'DESCRIPTION["optional"] = ["save_state"]')
    assert saving.save_state(LOGITS[None], np.zeros(1), np.ones((1, 3, 1, 3)), 3) == b"\1\2\3"
    assert not hasattr(saving, "adapter_autodiff")


def test_state_files_arrive_whole(started):
    backend = started(
        "import base64\n"
        'one = {"shape": [1], "data": [len(base64.b64decode(arguments["data"]))]}\n'
        'say({"id": number, "result": {"mix_logits": one, "gate_logits": one, "bases": one, "iterations": 7}})'
    )
    state = backend.load_state(bytes(range(256)) * 4)
    assert (state.mix_logits.tolist(), state.iterations) == ([1024.0], 7)


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


# -- programs that do not --


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
    for _ in range(100):  # it is not ours to reap, so it may stay as a zombie of somebody else's
        status = Path(f"/proc/{child}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)
    raise AssertionError("the program's own child still runs")


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


# -- programs that cannot be had --


@pytest.mark.clause("BACK-2", "ERR-2")
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("./absent", "no program, './absent'"),
        ("absent-interpreter port.js", "no program, 'absent-interpreter'"),
        ("./plain.txt", "a file that may not be executed"),
        ("./folder", "a folder"),
        ("./no_format", "Exec format error"),
        ("./no_interpreter", "no interpreter as its first line names"),
        ("./port 'unfinished", "No closing quotation"),
        ("'' /", "''"),
    ],
)
def test_a_program_that_cannot_be_had_is_one_clear_error(tmp_path, monkeypatch, name, part):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain.txt").write_text("text")
    for file, text in (("no_format", "neither"), ("no_interpreter", "#!/absent/interpreter\n")):
        (tmp_path / file).write_text(text)
        (tmp_path / file).chmod(0o755)
    with pytest.raises(BackendError, match="chmod") as error:
        load_backend(name)
    assert not isinstance(error.value, PortStoppedError)
    assert part in str(error.value)


@pytest.mark.parametrize("seconds", ["soon", "0", "-1", "nan", "inf"])
def test_a_time_limit_that_is_none_is_refused(started, seconds):
    with pytest.raises(BackendError, match="CRMA_EXECUTABLE_TIMEOUT: got"):
        started(ECHO, seconds=seconds)


@pytest.mark.clause("BACK-2")
def test_names_of_backends_and_factories_are_no_commands():
    assert not any(map(is_command, ("torch-cpu", "reference", "package.module:make", " reference ")))
    assert all(map(is_command, ("./port", "/bin/port", "ports/port.js", "node port.js")))


# -- its end --


def test_a_backend_that_nobody_holds_stops_its_program(started):
    backend = started(ECHO)
    pid = int(backend.version)
    assert backend.sinkhorn_projection(LOGITS, 3).shape == (3, 3)
    del backend
    gc.collect()
    assert is_gone(pid)


def test_an_interrupted_call_stops_the_program(started):
    """The answer to the interrupted request must not be taken for the answer to the next."""

    class Interruption(KeyboardInterrupt):
        pass

    def interrupt(*_):
        raise Interruption

    backend = started(f"time.sleep(1)\n{ECHO}")
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(Interruption):
            backend.sinkhorn_projection(LOGITS, 3)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert_stops(backend, "Interruption, which interrupted it at sinkhorn_projection")


@pytest.mark.parametrize("body", [ECHO, f"{ECHO}; signal.signal(signal.SIGALRM, signal.SIG_IGN); time.sleep(60)"])
@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "import os\nif os.fork(): os.wait()"])
def test_the_end_of_the_interpreter_stops_the_program(tmp_path, body, end):
    (tmp_path / "program.py").write_text(PROGRAM.replace("BODY", body))
    script = (
        "import numpy as np\nfrom backends import load_backend\n"
        f"backend = load_backend({f'{sys.executable} program.py'!r})\n"
        f"backend.sinkhorn_projection(np.eye(2), 3)\nprint(backend.version, flush=True)\n{end}\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    before = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert time.monotonic() - before < 15
    assert done.stderr == ""
    assert done.returncode == (3 if "SystemExit" in end else 0)
    assert is_gone(int(done.stdout.split()[0]))

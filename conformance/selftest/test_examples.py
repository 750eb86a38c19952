"""The example ports pass the whole suite, are as short and as plain as they claim, and their README's commands run.

Clauses: BACK-3, BACK-5, SINK-2, MIX-1.
"""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conformance
from backends import load_backend
from backends.executable import PortRefusalError
from backends.state_file import decode_state
from conformance.examples import cpp_port
from conformance.examples.pure_python_port import PurePythonPort
from conformance.gaps import read_gaps
from conformance.golden_vectors.state_files import CONFIG, KEYS, state_arrays, state_file, with_header
from reference.errors import BackendError, CRMAError

PACKAGE = Path(conformance.__file__).resolve().parent
EXAMPLES = PACKAGE / "examples"
README = (EXAMPLES / "README.md").read_text(encoding="utf-8")
PURE_PYTHON = "conformance.examples.pure_python_port:make_backend"
NODE = str(EXAMPLES / "node_port.js")
CPP = "conformance.examples.cpp_port:make_backend"
AUTOGRAD = "conformance.examples.autograd_port:make_backend"
COMMANDS = re.findall(r"^ *(python -m conformance .*)$", README, re.MULTILINE)
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None, reason="there is no C++ compiler c++, nor one that CXX names"
)
#: plain Python and lines of JSON need minutes for the large layouts of the covering design
SHORTER = dict.fromkeys((PURE_PYTHON, f"node {NODE}"), '-k "not test_design"')
#: backend, the dtypes that the header of its run says
PORTS = [
    pytest.param(PURE_PYTHON, "float64, x in float64, float32, float16, bfloat16", id="pure python"),
    pytest.param(f"node {NODE}", "float64, x in float64, float32, float16, bfloat16", id="node", marks=needs_node),
    pytest.param(CPP, "float32, x in float64, float32, float16, bfloat16", id="C++", marks=needs_compiler),
    pytest.param(AUTOGRAD, "float32, x in float32, against", id="autograd", marks=needs_torch),
]

#: The NumPy port of these tests: plain Python would take minutes for some of the steps.
UNFINISHED = """
from conformance.selftest.port import NumpyPort

FUNCTIONS = "sinkhorn_projection", "sinkhorn_projection_vjp", "adapter_forward", "adapter_vjp", "load_state"

def make_backend():
    port = NumpyPort()
    for function in FUNCTIONS[WRITTEN:]:
        setattr(port, function, unwritten)
    return port

def unwritten(*_):
    raise NotImplementedError("not written yet")
"""


def run(command, folder, port=PURE_PYTHON):
    """A command line in a folder of its own, as after an installation."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    packages = os.pathsep.join([str(folder), str(PACKAGE.parent), *sys.path])
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": packages, "PORT": port},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )


def assert_passes(name, dtypes, folder, *options):
    done = run(f'python -m conformance -q --backend="{name}" {" ".join(options)}', folder)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) > 500
    assert f"parameters in {dtypes}" in done.stdout


@pytest.mark.clause("BACK-3", "BACK-5")
@pytest.mark.parametrize(("name", "dtypes"), PORTS)
def test_example_passes_the_whole_suite(name, dtypes, tmp_path):
    assert_passes(name, dtypes, tmp_path, "--quick", SHORTER.get(name, ""))


@pytest.mark.slow
@pytest.mark.clause("BACK-3", "BACK-5", "CONF-1")
@pytest.mark.parametrize(("name", "dtypes"), PORTS)
def test_example_conforms(name, dtypes, tmp_path):
    """In the full profile and nothing left out, which alone says so (CONF-1)."""
    assert_passes(name, dtypes, tmp_path)


@needs_node
@pytest.mark.clause("BACK-2", "BACK-5")
@pytest.mark.skipif(not os.access(NODE, os.X_OK), reason="an installed wheel keeps no permission to execute")
def test_node_example_runs_by_its_path(tmp_path):
    done = run(f"python -m conformance -q --quick --backend={NODE} -k test_attributes", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_the_beginning_of_the_readme_runs_and_is_unfinished(tmp_path):
    """The first command passes on the port that is to be filled in, and the next one fails by what is not written."""
    (text,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "my_port.py").write_text(text)
    assert "export PORT=my_port:make_backend" in README
    done = run(f"{COMMANDS[0]} -q", tmp_path, "my_port:make_backend")
    assert done.returncode == 0, done.stdout + done.stderr
    for command in COMMANDS[1:6]:
        done = run(f"{command} -q -x", tmp_path, "my_port:make_backend")
        assert done.returncode == 1
        assert "not written yet" in done.stdout


def test_every_step_of_the_readme_has_its_command():
    assert len(COMMANDS) == 7
    assert sum("--quick" in command for command in COMMANDS) == 6
    for function in ("sinkhorn_projection", "sinkhorn_projection_vjp", "adapter_forward", "adapter_vjp", "load_state"):
        assert re.search(rf"^\d\. `{function}`", README, re.MULTILINE)


@pytest.mark.parametrize("written", range(6))
def test_a_step_of_the_readme_passes_once_its_function_is_written(written, tmp_path):
    """And not before: with one function fewer, it fails."""
    for count, passes in ((written, True), (written - 1, False)):
        if count >= 0:
            (tmp_path / "unfinished.py").write_text(UNFINISHED.replace("WRITTEN", str(count)))
            done = run(f"{COMMANDS[written]} -q {'' if passes else '-x'}", tmp_path, "unfinished:make_backend")
            assert done.returncode == (0 if passes else 1), done.stdout[-5000:] + done.stderr
            assert re.search(r"\d+ passed" if passes else "not written yet", done.stdout)


def test_the_last_command_of_the_readme_is_the_whole_suite(tmp_path):
    done = run(f"{COMMANDS[-1]} -q --collect-only", tmp_path)
    found = re.search(r"(\d+) tests collected", done.stdout)
    assert found, done.stdout[-2000:] + done.stderr
    assert int(found[1]) > 500


def test_gaps_of_the_readme_are_gaps(tmp_path):
    (text,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "gaps.toml").write_text(text)
    (gap,) = read_gaps(tmp_path / "gaps.toml")
    file, _, test = gap.test.partition("::")
    assert f"def {test.partition('[')[0]}(" in (PACKAGE / file).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "limit"),
    [
        ("node_port.js", 220),
        ("pure_python_port.py", 300),
        ("cpp_port.cpp", 700),
        ("cpp_port.py", 200),
        ("autograd_port.py", 200),
        ("README.md", 115),
    ],
)
def test_examples_stay_short(file, limit):
    lines = (EXAMPLES / file).read_text(encoding="utf-8").splitlines()
    assert len(lines) < limit
    assert max(map(len, lines)) <= 120


def test_pure_python_port_needs_the_standard_library_only():
    text = (EXAMPLES / "pure_python_port.py").read_text(encoding="utf-8")
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in imports if isinstance(node, ast.ImportFrom)}
    assert {"json", "math", "struct"} <= names
    assert names <= sys.stdlib_module_names
    script = "import runpy, sys; runpy.run_path(sys.argv[1]); sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-I", "-c", script, EXAMPLES / "pure_python_port.py"], check=True)


def test_node_port_needs_no_packages():
    text = (EXAMPLES / "node_port.js").read_text(encoding="utf-8")
    assert set(re.findall(r"require\((.*?)\)", text)) == {'"crypto"', '"readline"'}
    assert "import " not in text


def test_cpp_port_needs_the_standard_library_only():
    text = (EXAMPLES / "cpp_port.cpp").read_text(encoding="utf-8")
    assert text.count("#include") == len(re.findall(r"^#include <[a-z_]+>$", text, re.MULTILINE))


@pytest.mark.clause("SINK-1", "SINK-2", "SINK-9", "MIX-1", "MIX-4", "MIX-6", "MIX-11")
@pytest.mark.parametrize(
    ("changed", "value"),
    [
        ("iterations", 0),
        ("iterations", 2.0),
        ("iterations", True),
        ("iterations", None),
        ("mix_logits", []),
        ("mix_logits", 1.0),
        ("mix_logits", [[0.0, 1.0]]),
        ("mix_logits", [[0.0, 1.0], [2.0]]),
        ("mix_logits", [[0.0, np.nan], [2.0, 3.0]]),
        ("mix_logits", [[0.0, np.inf], [2.0, 3.0]]),
        ("mix_logits", [[[0.0, 1.0], [2.0, 3.0]]]),
        ("gate_logit", [0.0, 0.0]),
        ("gate_logit", np.nan),
        ("basis", []),
        ("basis", [[1.0, 0.0], [0.0, 1.0]]),
        ("basis", [[[0.0, 0.0]], [[0.0, 0.0]]]),
        ("basis", [[[np.nan, 0.0]], [[0.0, 1.0]]]),
        ("x", [1.0]),
        ("x", 1.0),
        ("x", [[1.0, 2.0], [1.0, 2.0, 3.0]]),
    ],
)
def test_pure_python_port_refuses_by_a_value_error(changed, value):
    inputs = {"x": [[1.0, 2.0]], "mix_logits": [[0.0, 1.0], [2.0, 3.0]], "gate_logit": 0.0}
    inputs |= {"basis": [[[1.0, 0.0]], [[0.0, 1.0]]], "iterations": 3}
    port = PurePythonPort()
    assert port.adapter_forward(**inputs) != inputs["x"]
    inputs[changed] = value
    with pytest.raises(ValueError, match=r"\w"):
        port.adapter_forward(**inputs)
    with pytest.raises(ValueError, match=r"\w"):
        port.adapter_vjp(**inputs, cotangent=[[1.0, 2.0]])


@needs_node
@pytest.mark.clause("SINK-1", "SINK-2", "BACK-5")
def test_node_port_refuses_and_goes_on():
    port = load_backend(f"node {NODE}")
    wrong: list[tuple[tuple[int, ...], Any]] = [((2, 2), True), ((2, 2), 0), ((2, 2), "3"), ((0, 2, 2), 2.5)]
    for shape, iterations in [*wrong, ((2, 3), 3), ((0, 0), 3), ((3,), 3)]:
        with pytest.raises(PortRefusalError, match=r"node_port\.js, sinkhorn_projection: got"):
            port.sinkhorn_projection(np.zeros(shape), iterations)
    assert port.sinkhorn_projection(np.zeros((2, 2)), 3).tolist() == [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.clause("SINK-1", "SINK-2", "SINK-9", "MIX-1", "MIX-4", "MIX-6", "MIX-10", "MIX-11", "GRAD-7")
@pytest.mark.parametrize(
    "name",
    [pytest.param(CPP, id="C++", marks=needs_compiler), pytest.param(AUTOGRAD, id="autograd", marks=needs_torch)],
)
@pytest.mark.parametrize(
    ("changed", "value"),
    [
        ("iterations", 0),
        ("iterations", -(2**64)),
        ("iterations", 2**64 + 1),
        ("iterations", 2.0),
        ("iterations", True),
        ("iterations", None),
        ("mix_logits", np.float32(1)),
        ("mix_logits", np.zeros((0, 0), np.float32)),
        ("mix_logits", np.zeros((2, 3), np.float32)),
        ("mix_logits", np.zeros((1, 2, 2), np.float32)),
        ("mix_logits", np.zeros((2, 2), np.int32)),
        ("mix_logits", np.full((2, 2), np.nan, np.float32)),
        ("mix_logits", np.full((2, 2), -np.inf, np.float32)),
        ("gate_logit", np.zeros(2, np.float32)),
        ("gate_logit", np.float32(np.nan)),
        ("basis", np.zeros((2, 1, 2), np.float32)),
        ("basis", np.zeros((2, 0, 2), np.float32)),
        ("basis", np.ones((2, 2), np.float32)),
        ("basis", np.ones((2, 2, 2), np.float32)),
        ("basis", np.full((2, 1, 2), np.inf, np.float32)),
        ("x", np.float32(1)),
        ("x", np.zeros((5, 3), np.float32)),
        ("x", np.zeros((5, 2), np.int64)),
        ("x", np.zeros((5, 2), np.complex64)),
    ],
)
def test_a_port_of_arrays_refuses_forward_and_backward(name, changed, value):
    factory, _, function = name.partition(":")
    port = getattr(import_module(factory), function)()
    inputs: dict[str, Any] = {"x": np.ones((5, 2), np.float32), "mix_logits": np.eye(2, dtype=np.float32)}
    inputs |= {"gate_logit": np.float32(0), "basis": np.eye(2, dtype=np.float32).reshape(2, 1, 2), "iterations": 3}
    assert all(np.isfinite(part).all() for part in port.adapter_vjp(**inputs, cotangent=inputs["x"]))
    inputs[changed] = value
    if changed == "iterations" and value == 2**64 + 1 and name == AUTOGRAD:
        pytest.skip("a legal K, at which a computation would not end")
    for function in (port.adapter_forward, partial(port.adapter_vjp, cotangent=np.zeros_like(inputs["x"]))):
        with pytest.raises(ValueError, match=r"\w"):
            function(**inputs)


@needs_compiler
@pytest.mark.clause("GRAD-7")
@pytest.mark.parametrize("shape", [(2,), (1, 2), (5, 1), (6, 2), (1, 5, 2), ()])
def test_cpp_port_refuses_a_cotangent_of_another_shape(shape):
    """Also one that broadcasts, as its memory would be read beyond its end."""
    port = cpp_port.make_backend()
    x, logits = np.ones((5, 2), np.float32), np.zeros((2, 2), np.float32)
    basis, cotangent = np.eye(2, dtype=np.float32).reshape(2, 1, 2), np.ones(shape, np.float32)
    gate = np.zeros((), np.float32)
    with pytest.raises(ValueError, match="cotangent"):
        port.adapter_vjp(x, logits, gate, basis, cotangent, 3)
    with pytest.raises(ValueError, match="cotangent"):
        port.adapter_vjp(x, logits, gate, basis, x.astype(np.float64), 3)
    with pytest.raises(ValueError, match="cotangent"):
        port.sinkhorn_projection_vjp(logits, cotangent, 3)


@pytest.mark.clause("ERR-2")
@pytest.mark.parametrize("compiler", ["no-such-compiler -O2", "", "false"])
def test_cpp_port_without_a_compiler_is_one_message(compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(BackendError, match=r"C\+\+ compiler") as caught:
        cpp_port.library.__wrapped__()
    assert all([caught.value.field, caught.value.got, caught.value.allowed, caught.value.remedy])
    done = run(f'CXX="{compiler}" python -m conformance -q --quick --backend={CPP} -k test_attributes', tmp_path)
    assert done.returncode == 4
    assert "C++ compiler: got" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@needs_compiler
@pytest.mark.clause("STATE-6")
def test_cpp_port_computes_the_checksum_of_any_length():
    """Around the borders of the blocks of 64 bytes, and of the UTF-8 that the JSON's escapes stand for."""
    port, arrays = cpp_port.make_backend(), state_arrays()
    body = b"".join(arrays[key].tobytes() for key in KEYS)
    for spaces in range(130):
        config = json.dumps(CONFIG) + " " * spaces
        digest = hashlib.sha256(config.encode() + body).hexdigest()
        data = state_file(arrays, config=config, content_sha256=digest)
        assert np.array_equal(port.load_state(data)[0], arrays["mix_logits"])
        for wrong in (digest[:-1] + "0123456789abcdef"[int(digest[-1], 16) ^ 1], digest.upper(), digest[:-1], ""):
            with pytest.raises(ValueError, match="content_sha256"):
                port.load_state(state_file(arrays, config=config, content_sha256=wrong))


def json_faults():
    """Headers that are no JSON, or no UTF-8, each beside what it was made of."""
    good = state_file(state_arrays(), notes="NOTES")
    start = 8 + int.from_bytes(good[:8], "little")
    text = good[8:start].rstrip()
    for notes in (
        b'"\\x"',
        b'"\\u12"',
        b'"\\ud800"',
        b'"\\ud800\\u0041"',
        b'"\\udc00"',
        b'"\x01"',
        b"NaN",
        b"01",
        b"1.",
    ):
        yield text.replace(b'"NOTES"', notes), good[start:]
    for raw in (
        b"\x80",
        b"\xc0\xaf",
        b"\xc3",
        b"\xe0\x80\xaf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xff",
    ):
        yield text.replace(b"NOTES", raw), good[start:]
    for changed in (text[:-1], text + b"}", text + b",", text + b"\0", b"[" + text + b"]", b"\xef\xbb\xbf" + text, b""):
        yield changed, good[start:]
    yield text.replace(b",", b",,", 1), good[start:]
    yield text.replace(b'"notes"', b'"format"'), good[start:]
    yield text.replace(b"NOTES", b"x").replace(b'"notes":"x"', b'"notes":' + b"[" * 10**6), good[start:]


@needs_compiler
@pytest.mark.clause("STATE-4")
def test_cpp_port_refuses_what_is_no_json():
    port = cpp_port.make_backend()
    for text, body in json_faults():
        with pytest.raises(ValueError, match=r"\w"):
            port.load_state(with_header(text, body))
    notes = '"\\\b\f\n\r\t/ é € 😀 \u0000'
    for ascii_only in (True, False):
        header = state_file(state_arrays(), notes="NOTES")
        start = 8 + int.from_bytes(header[:8], "little")
        text = header[8:start].replace(b'"NOTES"', json.dumps(notes, ensure_ascii=ascii_only).encode())
        assert port.load_state(with_header(text + b" \t\r\n", header[start:]))[3] == CONFIG["iterations"]


@needs_compiler
@pytest.mark.clause("STATE-1", "STATE-4")
def test_cpp_port_reads_and_refuses_as_the_projects_own_reader():
    """Of files with a few bytes changed, put in or taken out in the header, which 1 in 20 survives."""
    rng, port, read = np.random.default_rng(0), cpp_port.make_backend(), 0
    good = state_file(state_arrays(), base_model='a model of "é"')
    for _ in range(2000):
        start = 8 + int.from_bytes(good[:8], "little")
        text, place = bytearray(good[8:start]), int(rng.integers(start - 8))
        bytes_in = bytes(
            rng.choice(list(b'0123456789"{}[],:.\\-+eEu nt\0\xc3\xa9'), int(rng.integers(3))).astype(np.uint8)
        )
        text[place : place + int(rng.integers(3))] = bytes_in
        data = with_header(bytes(text), good[start:])
        try:
            expected = decode_state(data)
        except CRMAError:
            with pytest.raises(ValueError, match=r"\w"):
                port.load_state(data)
        else:
            found, read = port.load_state(data), read + 1
            assert all(np.array_equal(left, right) for left, right in zip(found[:3], expected[:3], strict=True))
            assert found[3] == expected.config.iterations
    assert read > 40

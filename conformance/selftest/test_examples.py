"""The example ports pass the whole suite, are as short and as plain as they claim, and their README's commands run.

Clauses: BACK-3, BACK-5, SINK-2, MIX-1.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conformance
from backends import load_backend
from backends.executable import PortRefusalError
from conformance.examples.pure_python_port import PurePythonPort
from conformance.gaps import read_gaps

PACKAGE = Path(conformance.__file__).resolve().parent
EXAMPLES = PACKAGE / "examples"
README = (EXAMPLES / "README.md").read_text(encoding="utf-8")
PURE_PYTHON = "conformance.examples.pure_python_port:make_backend"
NODE = str(EXAMPLES / "node_port.js")
COMMANDS = re.findall(r"^ *(python -m conformance .*)$", README, re.MULTILINE)
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


UNFINISHED = """
from conformance.examples.pure_python_port import PurePythonPort

FUNCTIONS = "sinkhorn_projection", "sinkhorn_projection_vjp", "adapter_forward", "adapter_vjp", "load_state"

def make_backend():
    port = PurePythonPort()
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
        timeout=400,
        check=False,
    )


@pytest.mark.clause("BACK-3", "BACK-5")
@pytest.mark.parametrize(
    "name",
    [
        PURE_PYTHON,
        pytest.param(f"node {NODE}", marks=needs_node),
    ],
    ids=["pure python", "node"],
)
def test_example_passes_the_whole_suite(name, tmp_path):
    done = run(f'python -m conformance -q --quick --backend="{name}"', tmp_path)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) > 500
    assert "parameters in float64, x in float64, float32, float16, bfloat16" in done.stdout


@needs_node
@pytest.mark.clause("BACK-2", "BACK-5")
@pytest.mark.skipif(not os.access(NODE, os.X_OK), reason="an installed wheel keeps no permission to execute")
def test_node_example_runs_by_its_path(tmp_path):
    done = run(f"python -m conformance -q --quick --backend={NODE} -k test_attributes", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


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


@pytest.mark.parametrize(("file", "limit"), [("node_port.js", 200), ("pure_python_port.py", 300), ("README.md", 90)])
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
    assert set(re.findall(r"require\((.*?)\)", text)) == {'"readline"'}
    assert "import " not in text


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

"""Several processes, several installations, folders with clashing names. Clauses: CONF-2, CONF-4, CONF-7, CONF-8."""

import os
import re
import shutil
import sys

import pytest

from conformance.__main__ import _processes
from conformance.selftest import programs
from conformance.selftest.programs import EXITS, ROOT

pytest.importorskip("xdist")

DIES = """
import json, sys
for number, line in enumerate(sys.stdin):
    request = json.loads(line)
    if number > 3:
        sys.exit(3)
    about = {"name": "x", "version": "1", "device": "cpu", "parameter_dtype": "float32"}
    answer = {"result": about} if request["function"] == "describe" else {"error": "no"}
    print(json.dumps({"id": request["id"], **answer}), flush=True)
"""
GAPS = '[[gap]]\ntest = "test_refusals.py::{}"\nreason = "not written"\nlink = "#1"\n'
REFUSALS = "conformance/test_refusals.py"


def run(command, folder, **environment):
    """Status and output of a command from another folder."""
    done = programs.run(folder, *command, **environment)
    return done.returncode, done.stdout + done.stderr


def pytest_n2(folder, *options):
    command = ["-m", "pytest", "-p", "conformance.plugin", "--import-mode=importlib", "-n", "2", "-q", "--quick"]
    return run([*command, str(ROOT / REFUSALS), *options], folder)


@pytest.mark.clause("CONF-2", "CONF-7")
def test_each_backend_has_its_line_and_shapes_are_counted(tmp_path):
    """As in one process: the same number of passed tests and of shapes."""
    backends = ["--backend=reference", "--backend=conformance.selftest.port:make_port"]
    code, printed = pytest_n2(tmp_path, *backends)
    assert code == 0, printed
    assert "backend reference: reference, spec" in printed
    assert "backend conformance.selftest.port:make_port: numpy-port" in printed
    alone = run(["-m", "conformance", "-n", "0", "-q", "--quick", "test_refusals.py", *backends], tmp_path)[1]
    assert counts(alone) == counts(printed), (alone, printed)


def counts(printed):
    return re.findall(r"^shapes: \d+|\d+ passed", printed, re.MULTILINE)


@pytest.mark.clause("CONF-4", "CONF-7")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--backend=nonsense"], "--backend=nonsense: backend: got 'nonsense'"),
        (["--backend=reference", "--clause=no-such"], "--clause: got 'no-such'"),
        (["--backend=reference", "--gaps=missing.toml"], "gaps file missing.toml"),
        (["--backend=reference", "--gaps=wrong.toml"], "the exact id of a test"),
        (["--backend=reference", "--conformance-report=a.json"], "--conformance-report: got several processes"),
    ],
    ids=["backend", "clause", "no gaps file", "wrong gap", "report"],
)
def test_errors_of_use_are_one_message(options, said, tmp_path):
    (tmp_path / "wrong.toml").write_text(GAPS.format("nothing"))
    code, printed = pytest_n2(tmp_path, *options)
    assert code == 4, printed
    assert said in printed
    assert "INTERNALERROR" not in printed


@pytest.mark.clause("CONF-3", "CONF-7")
def test_a_gap_whose_test_passes_fails_the_run(tmp_path):
    test = "test_a_cotangent_of_the_adapter_of_another_shape_is_refused[reference-one stream]"
    (tmp_path / "gaps.toml").write_text(GAPS.format(test))
    code, printed = pytest_n2(tmp_path, "--backend=reference", "--gaps=gaps.toml")
    assert code == 1, printed
    assert "1 failed" in printed


@pytest.mark.clause("CONF-4", "CONF-7")
def test_a_program_that_dies_and_a_port_that_ends_its_process_are_one_status(tmp_path):
    (tmp_path / "dies.py").write_text(DIES)
    (tmp_path / "my_port.py").write_text(EXITS)
    code, printed = pytest_n2(tmp_path, f"--backend={sys.executable} {tmp_path / 'dies.py'}")
    assert code == 4, printed
    assert "an end with status 3" in printed
    assert "INTERNALERROR" not in printed
    command = ["-m", "conformance", "-q", "--quick", "-n", "2", "--max-worker-restart", "0", "test_refusals.py"]
    code, printed = run([*command, "--backend=my_port:Exits"], tmp_path)
    assert code == 4, printed
    assert "an end of the process within" in printed


@pytest.mark.clause("CONF-7")
@pytest.mark.parametrize(
    ("several", "arguments"),
    [
        (True, ["--backend=jax-cpu", "-q", "--tb=short", "--color=no", "-p", "no:cacheprovider"]),
        (True, ["--backend", "torch-cpu", "--statement=port.json", "--continue-on-collection-errors"]),
        *((False, [option]) for option in ("-n4", "--numprocesses=2", "-x", "--maxfail=1", "-s", "--co", "-kgate")),
        *((False, [option]) for option in ("--clause=MIX-4", "--junitxml=a.xml", "--conformance-report=a.json")),
        *((False, [f"--backend={name}"]) for name in ("torch-cuda", "torch-triton", "jax-pallas", "jax-cuda")),
        (False, ["-p", "no:xdist"]),
    ],
    ids=str,
)
def test_a_run_is_of_several_processes_unless_something_else_is_asked_for(several, arguments, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert bool(_processes(arguments)) is several


@pytest.mark.clause("CONF-8")
def test_two_installations_are_an_error(tmp_path):
    """Else the second backend would be dropped in silence."""
    shutil.copytree(ROOT / "conformance", tmp_path / "conformance", ignore=shutil.ignore_patterns("__pycache__"))
    command = ["-m", "pytest", "-p", "conformance.plugin", "--import-mode=importlib", "-q", REFUSALS]
    code, printed = run(["-P", *command, "--backend=reference", "--backend=torch-cpu"], tmp_path)
    assert code == 4, printed
    assert f"tests of {tmp_path / 'conformance'}" in printed
    assert str(ROOT / "conformance") in printed


@pytest.mark.clause("CONF-8")
@pytest.mark.parametrize("name", ["reference", "backends", "spec", "bench", "conformance"])
@pytest.mark.parametrize("form", ["folder", "module"])
def test_names_of_a_users_own_are_seen_or_do_no_harm(name, form, tmp_path):
    """From a project's folder the suite runs, or one message names the clash; with -P it always runs."""
    own = tmp_path / name / "__init__.py" if form == "folder" else tmp_path / f"{name}.py"
    own.parent.mkdir(exist_ok=True)
    own.write_text("raise ImportError('the own module of a user')\n")
    options = ["-m", "conformance", "-n", "0", "-q", "--quick", "--backend=reference", "test_refusals.py"]
    code, printed = run(["-P", *options], tmp_path, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    assert code == 0, printed
    if name != "conformance":  # which Python itself takes for the suite
        code, printed = run(options, tmp_path, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
        assert code in (0, 4), printed
        assert "Traceback" not in printed
        assert code == 0 or (name in printed and "python -P -m conformance" in printed), printed

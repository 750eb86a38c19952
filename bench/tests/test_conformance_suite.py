"""The cost of a run of the conformance suite: what is read from its output, measured of its processes, and stored."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft", reason="pip install 'crma[bench]'")

from bench import conformance_suite, evidence
from reference.errors import BackendError, ConfigError

Ran = Callable[..., tuple[int, list[str]]]
HEADER = "backend jax-cpu: jax-cpu, jax 0.10.2, on cpu, parameters in float32, x in float32, against spec 0.3"
QUIET = f"""{HEADER}
......ssF.                                                               [100%]
shapes: 1,815 distinct
FAILED conformance/test_x.py::test_x[jax-cpu] - assert 3 passed
"""


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """``main`` with another program in the place of the suite: its status, and the command that it has run."""
    start = subprocess.Popen

    def run(program: str, *options: str) -> tuple[int, list[str]]:
        commands: list[list[str]] = []

        def replaced(command: list[str], **kwargs: Any) -> Any:
            commands.append(command)
            return start([sys.executable, "-c", program], **kwargs)

        monkeypatch.setattr(subprocess, "Popen", replaced)
        status = conformance_suite.main(["--backends", "jax-cpu", "--profiles", "full", *options])
        return status, commands[0] if commands else []

    return run


@pytest.mark.parametrize(
    ("closing", "passed", "skipped", "failed", "gaps"),
    [
        ("840 passed in 59.76s", 840, 0, 0, 0),
        ("834 passed, 6 skipped in 102.94s (0:01:42)", 834, 6, 0, 0),
        ("===== 1 failed, 833 passed, 6 skipped, 1 warning in 4440.01s (1:14:00) =====", 833, 6, 1, 0),
        ("3 failed, 2 passed, 4 deselected, 1 xfailed, 2 xpassed, 1 error in 1.00s", 2, 0, 6, 1),
        ("2 failed, 2 errors in 0.10s", 0, 0, 4, 0),
    ],
)
def test_counts_of_every_closing_line(closing: str, passed: int, skipped: int, failed: int, gaps: int) -> None:
    found = conformance_suite.read_output(f"{QUIET}{closing}\n")
    assert (found["passed"], found["skipped"], found["failed"], found["gaps"]) == (passed, skipped, failed, gaps)
    assert (found["shapes"], found["header"]) == (1815, HEADER)
    silent = conformance_suite.read_output("....\n4 passed in 0.01s\n")
    assert (silent["shapes"], silent["header"]) == (None, None)


@pytest.mark.parametrize("text", ["", QUIET, "5 passed", "no tests ran in 0.01s"])
def test_an_output_without_a_closing_line_proves_nothing(text: str) -> None:
    with pytest.raises(ConfigError, match="closing line"):
        conformance_suite.read_output(text)


def test_a_run_is_measured_stored_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small part of the suite itself, then as the table of the README."""
    out = tmp_path / "suite.json"
    options = ["--backends", "reference", "--profiles", "quick", "--out", str(out), "--", "-k", "test_attributes"]
    assert conformance_suite.main(options) == 0
    content = json.loads(out.read_text())
    (run,) = content["runs"]
    assert (run["backend"], run["profile"], run["processes"]) == ("reference", "quick", 2)
    assert (run["passed"], run["skipped"], run["failed"]) == (1, 0, 0)
    assert run["header"].startswith("backend reference: reference, spec ")
    assert run["cpu_seconds"] > 0.1
    assert 0.1 < run["wall_seconds"] < 300
    assert run["peak_bytes"] > 2**25  # no upper bound: see the test of a fresh process
    assert content["versions"]["python"]
    assert str(tmp_path) not in out.read_text()
    monkeypatch.setattr(evidence, "SUITE", out)
    head, row = evidence.suite_table()
    assert len(head) == len(row)
    assert row[0] == "`reference -k test_attributes`"
    assert row[6:] == ["1 passed", ""]


IN_A_FRESH_PROCESS = """
import subprocess, sys
from bench import conformance_suite

conformance_suite.where()
assert not {"torch", "jax"} & sys.modules.keys()
start = subprocess.Popen
subprocess.Popen = lambda command, **kwargs: start([sys.executable, "-c", sys.argv[1]], **kwargs)
sys.exit(conformance_suite.main(["--backends", "jax-cpu", "--profiles", "full", "--out", sys.argv[2]]))
"""


def test_processor_time_and_memory_are_of_all_processes(tmp_path: Path) -> None:
    """What a grandchild takes counts, and what the measuring process holds does not, as it holds little: on Linux a
    child's peak begins with the memory of the process that started it.
    """
    work = "import time; held = b'1' * 2**28\nwhile time.process_time() < 1: pass"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}]); print('1 passed in 1.00s')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(evidence.ROOT), *sys.path])}
    out = tmp_path / "out.json"
    subprocess.run([sys.executable, "-c", IN_A_FRESH_PROCESS, program, str(out)], env=environment, check=True)
    (run,) = json.loads(out.read_text())["runs"]
    assert 1 <= run["cpu_seconds"] < 20
    assert 2**28 < run["peak_bytes"] < 2**28 + 2**27


def test_options_reach_the_suite(ran: Ran) -> None:
    status, command = ran("print('1 failed in 1.00s'); exit(1)", "--processes", "2", "--", "-k", "sizes")
    assert status == 1
    assert command[1:3] == ["-m", "conformance"]
    assert "--backend=jax-cpu" in command
    assert command[-4:] == ["-n", "2", "-k", "sizes"]
    assert "--quick" not in command


@pytest.mark.parametrize("program", ["exit(4)", "exit(3)", "import os; print('1 passed in 1s'); os.abort()", ""])
def test_a_run_that_did_not_end_is_one_message(program: str, ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(program)[0] == 2
    assert "conformance run" in capsys.readouterr().err


def test_other_runs_of_the_file_stay_and_the_status_is_of_this_call(ran: Ran, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    for counts, processes, failed in (("1 failed, 1 passed", "1", 1), ("2 passed", "2", 0), ("3 passed", "1", 0)):
        status, _ = ran(f"print('{counts} in 1.00s')", "--processes", processes, "--out", str(out))
        assert status == failed
    assert [(run["passed"], run["processes"]) for run in json.loads(out.read_text())["runs"]] == [(2, 2), (3, 1)]


@pytest.mark.parametrize("content", ["[]", "{", '{"machine": {}, "versions": {}, "runs": []}', '{"runs": []}'])
def test_a_file_of_another_machine_is_left_alone(
    content: str, ran: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    out.write_text(content)
    status, command = ran("print('1 passed in 1.00s')", "--out", str(out))
    assert (status, command, out.read_text()) == (2, [], content)
    assert "this machine" in capsys.readouterr().err


def test_no_such_backend_is_refused_by_the_suite() -> None:
    with pytest.raises(BackendError, match="exit status 4"):
        conformance_suite.measured("no-such-backend", "quick", 1)

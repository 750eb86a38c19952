"""``python -m bench.gpu`` without a GPU: each section in its small form, and the driver with bad sections."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from bench.gpu import __main__ as command
from bench.gpu import driver
from bench.gpu.report import FAILED, PASSED, SKIPPED, Report, said, without_places
from bench.gpu.sections import FIRST, SECTIONS, Section
from reference.errors import ConfigError, MissingPackageError

ROOT = Path(__file__).resolve().parents[2]
WITH_TRITON = ("agreement", "large-tensors", "determinism", "launches", "cuda-graph", "torch-compile")
SLOW = {"conformance-torch-triton", "conformance-torch-plain", "conformance-jax-pallas", "fine-tuning"}
SLOW |= {"model-3.8b", "model-7.2b", "model-9.2b"}
NEEDS = {"model": "peft", "fine": "peft", "launches": "peft", "determinism": "peft", "pallas": "jax"}


def _outcome(report: Report) -> tuple[str, str]:
    return driver._judged(report.parts)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in SECTIONS])
def test_a_section_in_its_small_form(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: the packages are imported once for all sections."""
    for variable, value in driver._environment("cpu").items():
        monkeypatch.setenv(variable, value)
    needed = next((package for prefix, package in NEEDS.items() if name.startswith(prefix)), "torch")
    pytest.importorskip("jax" if "jax" in name else needed)
    if name in WITH_TRITON or "triton" in name:
        pytest.importorskip("triton")
        from backends import load_backend

        load_backend("torch-triton")  # which makes the kernels for the interpreter, before the section loads them
    file = tmp_path / "parts.json"
    report = Report(file, "cpu")
    section = SECTIONS[name]
    getattr(importlib.import_module(section.module), section.function)(*section.arguments, report)
    assert _outcome(report) == (PASSED, ""), report.parts
    stored = file.read_text()
    assert json.loads(stored) == json.loads(json.dumps(report.parts))
    for place in (str(tmp_path), str(ROOT), str(Path.home()), sys.prefix):
        assert f"{place}/" not in stored


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_loss() -> None:
    pytest.importorskip("peft")
    from bench.gpu.launches import compiled_model

    figures: dict[str, Any] = {}
    compiled_model("cpu", "aot_eager", figures)
    assert len(figures) == 2


# The driver ---------------------------------------------------------------------------------------------------------

MISBEHAVING = """
import os, signal, subprocess, sys, time
from pathlib import Path
from bench.gpu.report import NotHere

def good(report):
    with report.part("one") as figures:
        figures |= {"value": 1.5, "ran": time.time(), "infinite": float("inf"), "place": __file__}

def partly(report):
    good(report)
    with report.part("absent"):
        raise NotHere("a machine without wings")

def wrong(report):
    good(report)
    with report.part("two") as figures:
        figures["kept"] = 1
        raise ValueError(f"in {__file__}")
    good(report)

def crash(report):
    good(report)
    os.kill(os.getpid(), signal.SIGSEGV)

def hang(report):
    good(report)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(__file__).with_name("pid").write_text(str(other.pid))
    time.sleep(600)

def silent(report):
    sys.exit(0)

def absent(report):
    import a_package_that_nobody_has

def once(report):
    with report.part("one"):
        mark = Path(__file__).with_name("mark")
        if not mark.exists():
            mark.touch()
            raise ValueError("the first time")
"""
Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.json"


@pytest.fixture
def run(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``main`` over the section that names the machine and those of MISBEHAVING; its status, and what is stored."""
    (tmp_path / "misbehaving.py").write_text(MISBEHAVING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))

    def run(*names: str, options: tuple[str, ...] = (), seconds: int = 60) -> tuple[int, dict[str, Any]]:
        chosen = {FIRST: SECTIONS[FIRST]} | {name: Section("misbehaving", name, seconds) for name in names}
        monkeypatch.setattr(command, "SECTIONS", chosen)
        status = command.main(["--out", str(out), "--device", "cpu", *options])
        return status, json.loads(out.read_text())["sections"] if out.exists() else {}

    return run


def test_what_failed_costs_its_section_alone_and_is_told(
    run: Run, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = run("wrong", "crash", "silent", "absent", "partly", "good")
    assert status == 1
    outcomes = {name: result["outcome"] for name, result in found.items()}
    assert outcomes == {
        "machine": PASSED,
        "wrong": FAILED,
        "crash": FAILED,
        "silent": FAILED,
        "absent": SKIPPED,
        "partly": PASSED,
        "good": PASSED,
    }
    assert found["wrong"]["why"] == "two failed: ValueError: in misbehaving.py"
    assert found["wrong"]["parts"]["two"]["figures"] == {"kept": 1}
    assert "SIGSEGV" in found["crash"]["why"]
    assert found["crash"]["parts"]["one"]["figures"]["value"] == 1.5  # what it had found is kept
    assert "without a result" in found["silent"]["why"]
    assert "a_package_that_nobody_has" in found["absent"]["why"]
    assert "without wings" in found["partly"]["why"]
    assert found["good"]["parts"]["one"]["figures"]["infinite"] == "inf"
    assert str(tmp_path) not in out.read_text()
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "3 passed, 3 failed, 1 skipped"
    assert "two failed: ValueError" in printed


def test_a_hang_ends_with_all_that_it_started(run: Run, tmp_path: Path) -> None:
    status, found = run("hang", "good", seconds=4)
    assert status == 1
    assert found["hang"]["outcome"] == FAILED
    assert "4 s" in found["hang"]["why"]
    assert found["hang"]["parts"]["one"]["outcome"] == PASSED
    assert found["good"]["outcome"] == PASSED
    assert _is_gone(int((tmp_path / "pid").read_text()))


def test_the_same_command_goes_on_with_what_has_not_passed(run: Run) -> None:
    status, before = run("good", "once")
    assert (status, before["once"]["outcome"]) == (1, FAILED)
    status, after = run("good", "once")
    assert (status, after["once"]["outcome"]) == (0, PASSED)
    assert after["good"] == before["good"]
    status, again = run("good", "once", options=("--sections", "good"))
    assert status == 0
    assert again["once"] == after["once"]
    ran = [result["good"]["parts"]["one"]["figures"]["ran"] for result in (after, again)]
    assert ran[1] > ran[0]


def test_out_of_time_is_no_failure_and_is_made_up_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time box ends in the midst of a section: it is not to blame, and runs again."""
    status, found = run("hang", "good", options=("--minutes", "0.2"), seconds=600)
    assert status == 0
    assert (found["hang"]["outcome"], found["hang"]["why"]) == (SKIPPED, driver.OUT_OF_TIME)
    assert (found["good"]["outcome"], found["good"]["why"]) == (SKIPPED, driver.OUT_OF_TIME)
    assert found["good"]["seconds"] == 0
    status, found = run("good")
    assert (status, found["good"]["outcome"]) == (0, PASSED)


def test_a_file_of_other_code_or_damaged_is_left_alone(run: Run, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("good")
    whole = out.read_text()
    content = json.loads(whole)
    identity = {name: value for name, value in content.items() if name != "sections"}
    sections = {"good": SECTIONS[FIRST]}
    assert driver._stored(out, identity, sections).keys() == {"good"}
    other_machine = content | {"machine": content["machine"] | {"processor": "another"}}
    bad_section = content | {"sections": {"good": {"outcome": "splendid"}}}
    for text in (*map(json.dumps, (other_machine, bad_section, [])), whole[:-20], ""):
        out.write_text(text)
        with pytest.raises(ConfigError, match="name another --out"):
            driver._stored(out, identity, sections)
    old = json.dumps(content | {"code": "0" * 16})
    out.write_text(old)
    assert command.main(["--out", str(out), "--device", "cpu"]) == 2
    assert out.read_text() == old
    assert "code 0000000000000000 in place of" in capsys.readouterr().err


def test_no_gpu_is_one_message_and_no_file(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert command.main(["--out", str(out)]) == 2
    assert not out.exists()
    assert "--device cpu" in capsys.readouterr().err


def test_ending_the_command_ends_the_section(run: Run, out: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from bench.gpu import __main__ as command; from bench.gpu.sections import SECTIONS, Section;"
        "command.SECTIONS = {'machine': SECTIONS['machine'], 'hang': Section('misbehaving', 'hang', 600)};"
        "sys.exit(command.main(sys.argv[1:]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, "--out", str(out), "--device", "cpu"])
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.2)  # until the number is written
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) != 0
    assert _is_gone(int((tmp_path / "pid").read_text()))
    assert json.loads(out.read_text())["sections"]["machine"]["outcome"] == PASSED


def _is_gone(pid: int) -> bool:
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        try:
            if state.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("options", [[], ["--out", "x", "--minutes", "0"], ["--out", "x", "--sections", "none"]])
def test_a_mistake_on_the_command_line_is_an_error(options: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        command.main(options)
    assert error.value.code == 2


def test_help_names_the_sections(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--help"])
    shown = "".join(capsys.readouterr().out.split())
    assert all(name in shown for name in SECTIONS)


def test_places_of_this_machine_are_in_no_message() -> None:
    text = f"no {Path.home() / 'models' / 'x.json'}, 3.5 MiB/s, a/b, https://example.org/a/b"
    assert without_places(text) == "no x.json, 3.5 MiB/s, a/b, https://example.org/a/b"
    assert said(MissingPackageError("x", got=1, allowed="2", remedy="3")).startswith("MissingPackageError: x: got 1")


def test_it_needs_no_pydantic(tmp_path: Path) -> None:
    """Sections that a machine without it can run do not import it; fine-tuning says what is missing."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('pydantic', 'gguf', 'platformdirs')));"
        "from bench.gpu import __main__, child; sys.exit(child.main(sys.argv[1:]))"
    )
    for name, outcome in (("model-1.1b", PASSED), ("fine-tuning", SKIPPED)):
        section, file = SECTIONS[name], tmp_path / f"{name}.json"
        pytest.importorskip("peft")
        command = ["cpu", str(file), section.module, section.function, *section.arguments]
        subprocess.run([sys.executable, "-c", code, *command], env=driver._environment("cpu"), check=True)
        found, why = driver._judged(json.loads(file.read_text()))
        assert found == outcome, why
        assert outcome == PASSED or "pydantic" in why

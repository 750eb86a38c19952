"""The process of an executable: one that cannot be started, and the end of one that was. BACK-2, BACK-5, ERR-2."""

import gc
import signal
import sys
import time

import pytest

from backends import load_backend
from backends.executable import is_command
from conformance.selftest.programs import ECHO, LOGITS, PROGRAM, assert_stops, is_gone, run
from reference.errors import BackendError, PortStoppedError

pytestmark = pytest.mark.clause("BACK-5")


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
    before = time.monotonic()
    done = run(tmp_path, "-c", script, timeout=60)
    assert time.monotonic() - before < 15
    assert done.stderr == ""
    assert done.returncode == (3 if "SystemExit" in end else 0)
    assert is_gone(int(done.stdout.split()[0]))

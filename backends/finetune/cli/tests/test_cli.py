"""What a user's mistake looks like: one message that says what to do, a non-zero exit code, nothing lost."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

pytest.importorskip("peft")

from backends.finetune.engines.tests.faults import spoil


def one_message(error: str) -> str:
    assert "Traceback" not in error
    (message,) = (line for line in error.splitlines() if line.startswith("crma: "))
    return message


@pytest.fixture
def refused(crma):
    """Run the command, which must end with exit code 2 and one message: the message."""

    def run(arguments: list[str]) -> str:
        code, _, error = crma(arguments)
        assert code == 2, error
        return one_message(error)

    return run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["finetune", "no-such"], ["protocol", "'no-such'", "quickstart", "crma protocols"]),
        (["finetune", "quickstart", "--model", "no-such"], ["model", "no-such", "smollm2"]),
        (["finetune", "quickstart", "--model", "org/name"], ["model", "org/name", "hf download"]),
        (["finetune", "quickstart", "--backend", "abacus"], ["backend", "abacus", "torch-cpu", "for fine-tuning"]),
        (
            ["finetune", "quickstart", "--backend", "reference"],
            ["backend", "reference", "torch-cuda, jax-cpu"],
        ),
        (["finetune", "quickstart", "--conditions", "wild"], ["conditions", "wild", "naive"]),
        (["finetune", "quickstart", "--task", "x"], ["task: got 'x'", "NAME=TRAIN.jsonl:HOLDOUT.jsonl"]),
        (["finetune", "quickstart", "--task", "x=a.jsonl:b.jsonl"], ["a.jsonl"]),
        (["report", "no-such-folder"], ["no-such-folder", "crma finetune"]),
    ],
)
def test_unknown_names_are_named_with_what_is_allowed(refused, arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused(arguments)
    assert all(part in message for part in expected), message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "crma: error: Missing command"),
        (["nope"], "crma: error: No such command 'nope'"),
        (["finetune"], "crma finetune: error: Missing argument"),
        (["finetune", "quickstart", "--nope"], "No such option: --nope"),
        (["finetune", "quickstart", "--seeds", "0", "x"], "--seeds"),
        (["finetune", "quickstart", "--out", "--shard"], "got --shard"),
        (["plan", "quickstart", "--precision", "float8"], "--precision"),
        (["plan", "quickstart", "--measure", "--measure-layers", "2"], "not allowed with argument --measure"),
        (["generate", "run", "--prompt", "a"], "one of the arguments --task --route is required"),
        (["generate", "run", "--prompt", "a", "--task", "a", "--route"], "not allowed with argument --task"),
    ],
)
def test_a_command_line_that_cannot_be_meant_ends_with_2(capfd, arguments, message):
    from backends.finetune.cli import main

    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capfd.readouterr().err


def test_the_help_needs_no_framework(tmp_path):
    program = "import sys; sys.modules.update(torch=None, jax=None, rich=None, matplotlib=None)\n"
    program += "from backends.finetune.cli import main; sys.exit(main(sys.argv[1:]))"
    for arguments in (["--help"], ["finetune", "-h"], ["generate", "--help"]):
        command = [sys.executable, "-c", program, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
        assert "Usage: crma" in result.stdout


def test_a_cuda_backend_without_a_gpu_is_an_error(refused, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.chdir(tmp_path)
    assert "torch-cpu" in refused(["finetune", "quickstart", "--backend", "torch-cuda"])


def test_what_is_cut_is_said_recorded_and_shown(crma, finetune_command, tmp_path):
    for side, numbers in (("train", range(4)), ("holdout", range(4, 6))):
        lines = [json.dumps({"prompt": f"say {n}:", "response": "x" * (30 + 6 * n)}) for n in numbers]
        (tmp_path / f"{side}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    task = f"x={tmp_path}/train.jsonl:{tmp_path}/holdout.jsonl"
    code, out, error = crma(finetune_command(tmp_path / "run", "--conditions", "frozen", tasks=[task]))
    assert code == 0, error
    said = "Cut at max_tokens, and so without their end: x 2 of 4 train, 2 of 2 holdout."
    assert out.startswith(said)  # before anything is trained
    assert said in " ".join(out[len(said) :].split())  # and below the table
    from backends.finetune.runs.results import read_results

    results = read_results(tmp_path / "run")
    (record,) = results.phases.values()
    # "say n:" has 6 tokens, an answer 30 + 6n and its end; of 48
    assert record.texts["train"].model_dump() == {"texts": 4, "cut": 2, "cut_tokens": 1 + 7, "split": 0}
    assert record.texts["holdout"].model_dump() == {"texts": 2, "cut": 2, "cut_tokens": 13 + 19, "split": 0}
    assert results.run.config["train"] is None  # every line of the files was used, whatever the protocol says
    assert results.run.config["holdout"] is None
    assert said in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    code, out, error = crma(["plan", finetune_command("x")[1], "--task", task, "--conditions", "frozen"])
    assert code == 0, error
    assert said in " ".join(out.split())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--set", "train=4"], "--set train: got"),  # of tasks from files every line is used
        (["--set", "holdout=1"], "--set holdout: got"),
        (["--set", 'tasks=["Code"]'], "--set tasks: got"),
        (["--set", "lora.rank=4", "--set", "lora.rank=8"], "--set lora.rank: got"),
        (["--seeds", "0", "--set", "seeds=[3]"], "--set seeds: got"),
        (["--set", "canaries=3"], "canaries: got 3 with --task"),
        (["--set", "crma.gate.learning_rate=1e38"], "crma.gate.learning_rate: got 1e+38"),
        (["--set", "lora.learning_rate=nan"], "lora.learning_rate: got nan"),
        (["--seeds", "-1"], "seeds"),
        (["--seeds", str(2**40)], "seeds"),
    ],
)
def test_an_option_that_would_be_ignored_or_cannot_be_is_refused(
    refused, finetune_command, tmp_path, options, expected
):
    assert expected in refused(finetune_command(tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()


def test_a_setting_that_no_condition_reads_is_said(crma, finetune_command, tmp_path):
    idle, read = ["ewc.strength=2", "crma.log_every=1", "distilled={strength=1}"], ["lora.alpha=4", "lwf.strength=2"]
    given = [part for setting in [*idle, *read] for part in ("--set", setting)]
    _, out, _ = crma(finetune_command(tmp_path / "run", *given, "--conditions", "frozen", "lwf"))
    said = [line.partition(" does nothing here")[0] for line in out.splitlines() if "does nothing here" in line]
    assert said == idle


def test_a_holdout_text_of_one_task_in_the_training_of_another_is_refused(
    refused, finetune_command, tiny_tasks, tmp_path
):
    holdout = Path(tiny_tasks[0].rpartition(":")[2])
    leaking = tmp_path / "leaking.jsonl"
    leaking.write_text('{"text": "else"}\n' + holdout.read_text(encoding="utf-8").upper().replace("PROMPT", "prompt")
                       .replace("RESPONSE", "response"), encoding="utf-8")  # fmt: skip
    (tmp_path / "h.jsonl").write_text('{"text": "other"}')
    tasks = [tiny_tasks[0], f"z={leaking}:{tmp_path}/h.jsonl"]
    assert f"{holdout}, line 1: got the text of {leaking}, line 2" in refused(
        finetune_command(tmp_path / "run", tasks=tasks)
    )
    assert not (tmp_path / "run").exists()


def test_a_run_folder_of_another_configuration_is_refused_and_left_alone(crma, refused, finetune_command, tmp_path):
    assert crma(finetune_command(tmp_path / "run", "--conditions", "frozen"))[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    message = refused(finetune_command(tmp_path / "run", "--conditions", "frozen", budget=0.1))
    assert "displacement_budget was 0.05, is 0.1" in message
    assert "--out" in message
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def edited(command: list[str], old: str, new: str) -> list[str]:
    """The command with another line in its protocol."""
    protocol = Path(command[1])
    text = protocol.read_text()
    assert old in text
    protocol.write_text(text.replace(old, new))
    return command


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("streams = 2", "streams = 64", ["streams * rank", "hidden_size = 16"]),
        ("alpha = 4", 'alpha = 4\ntarget_modules = "nope"', ["lora.target_modules", "all-linear"]),
    ],
)
def test_a_mistake_that_shows_late_does_not_bind_the_folder(
    crma, refused, finetune_command, tmp_path, old, new, expected
):
    more = ["--conditions", "modular"]
    message = refused(edited(finetune_command(tmp_path / "run", *more), old, new))
    assert all(part in message for part in expected), message
    assert crma(finetune_command(tmp_path / "run", *more))[0] == 0


def test_a_task_named_twice_is_refused(refused, finetune_command, tiny_tasks, tmp_path):
    assert "alpha" in refused(finetune_command(tmp_path / "run", tasks=[tiny_tasks[0], tiny_tasks[0]]))


@pytest.mark.parametrize("out", ["file", "file/run", "n" * 300])
def test_an_out_that_cannot_be_a_folder_is_named(refused, finetune_command, tmp_path, out):
    (tmp_path / "file").write_text("x")
    assert "--out" in refused(finetune_command(tmp_path / out))


@pytest.mark.parametrize("identity", [None, "{}", "not JSON"])
def test_a_folder_of_other_files_is_refused_and_left_alone(refused, finetune_command, tmp_path, identity):
    home = tmp_path / "home"
    (home / "other-program").mkdir(parents=True)
    files = {home / "results.jsonl": "mine", home / ".notes.tmp": "a", home / "other-program" / ".draft.tmp": "b"}
    if identity is not None:
        files[home / "run.json"] = identity
    for path, content in files.items():
        path.write_text(content)
    assert "other files" in refused(finetune_command(home))
    assert {path: path.read_text() for path in home.rglob("*") if path.is_file()} == files


def test_two_processes_in_one_run_folder(crma, crma_process, finetune_command, tmp_path):
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        process = crma_process(finetune_command(tmp_path / "run"))
        _, error = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "another process" in one_message(error)


OF_NOTHING, OF_A_NUMBER = (safetensors.numpy.save({"a": np.ones(1)}, {"progress": text}) for text in ("{}", "3"))


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", OF_NOTHING, OF_A_NUMBER, None])
def test_a_damaged_checkpoint_is_named_and_can_be_deleted(
    crma, refused, finetune_command, tmp_path, monkeypatch, damage
):
    command = finetune_command(tmp_path / "run", "--conditions", "frozen")
    spoil("torch", "interrupted 4", monkeypatch.setattr)
    assert crma(command)[0] == 130
    monkeypatch.undo()
    checkpoint = tmp_path / "run" / "0-frozen" / "checkpoint.safetensors"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: len(content) // 2] if damage is None else damage)
    message = refused(command)
    assert "checkpoint.safetensors" in message
    assert "delete this file" in message
    checkpoint.unlink()
    assert crma(command)[0] == 0


def test_the_default_out_and_the_report(crma, finetune_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = finetune_command("unused", "--conditions", "frozen")
    out = command.index("--out")
    assert crma(command[:out] + command[out + 2 :])[0] == 0
    report = tmp_path / "runs" / "tiny" / "report.html"
    assert report.is_file()
    report.unlink()
    code, out_text, _ = crma(["report", "runs/tiny"])
    assert code == 0
    assert "FROZEN" in out_text
    assert report.is_file()


def test_the_suite_gets_its_options(crma):
    code, out, error = crma(["conformance", "--version", "-q"])
    assert code == 0
    assert "pytest" in out + error


def test_the_list_of_protocols(crma):
    code, out, _ = crma(["protocols"])
    assert code == 0
    assert "quickstart" in out


def test_without_the_extra_the_command_says_which(tmp_path):
    program = "import sys; sys.modules['peft'] = None; sys.modules['rich'] = None\n"
    program += "from backends.finetune.cli import main; sys.exit(main(['protocols']))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert "crma[finetune]" in one_message(result.stderr)


def test_ctrl_c_in_a_process(crma_process, finetune_command, tmp_path):
    import signal

    # A shell that starts the tests in the background has them ignore SIGINT, and children inherit that.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    process = crma_process(finetune_command(tmp_path / "run"), program + "from backends.finetune.cli import main")
    results = tmp_path / "run" / "results.jsonl"
    deadline = time.monotonic() + 120
    while not results.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert results.exists()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "same --out" in one_message(error)


def test_the_version_names_what_computes(capsys):
    from importlib.metadata import version

    from backends.finetune.cli import main
    from reference import SPEC_VERSION

    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    words = capsys.readouterr().out.split()
    assert ended.value.code == 0
    assert words[:4] == ["crma", version("crma"), "(specification", f"{SPEC_VERSION};"]
    assert words[words.index("numpy") + 1] == f"{version('numpy')})"

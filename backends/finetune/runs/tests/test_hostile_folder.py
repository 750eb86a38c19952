"""A run folder from somebody else: nothing in it leads a command to write, read or wait elsewhere."""

import os
import socket
import subprocess
from contextlib import chdir
from pathlib import Path

import pytest

from backends.finetune.runs.records import RunRecord
from backends.finetune.runs.results import append_record, read_results
from backends.finetune.runs.run_folder import RunFolder
from backends.finetune.runs.tests.test_results import run_record
from reference.errors import RunFolderError

PLACES = (
    "results.jsonl",
    "run.json",
    ".lock",
    "report.html",
    "router.safetensors",
    "tasks-0.json",
    "pictures",
    "tensorboard",
    "0-modular",
    "0-modular/task-0",
    "0-modular/crma-0.safetensors",
    "tensorboard/0-modular",
    "a/b/c/d/e",
)
COMMANDS = {
    "finetune": lambda run: ["finetune", "quickstart", "--random-weights", "reduced", "--out", run],
    "report": lambda run: ["report", run],
    "certify": lambda run: ["certify", run],
    "route": lambda run: ["route", run],
    "generate": lambda run: ["generate", run, "--task", "a", "--prompt", "b"],
    "evaluate": lambda run: ["evaluate", run, "--task", "a", "--with", "lm-eval:b"],
    "generate --route": lambda run: ["generate", run, "--route", "--prompt", "b"],
}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text('{"protocol": {}, "backend": "torch-cpu", "model": ""}')
    append_record(folder / "results.jsonl", run_record())
    return folder


def put(path: Path, what: str, outside: Path) -> None:
    if path.is_file():
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    if what == "fifo":
        os.mkfifo(path)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as server, chdir(path.parent):
            server.bind(path.name)  # a path to a socket may have 107 bytes
    else:
        path.symlink_to({"folder": outside, "file": outside / "mine", "nowhere": outside / "new"}[what])


@pytest.mark.parametrize("what", ["folder", "file", "nowhere", "fifo", "socket"])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_neither_file_nor_folder_is_refused_by_name(run, outside, place, what):
    put(run / place, what, outside)
    for opening in (RunFolder, read_results):
        with pytest.raises(RunFolderError) as refused:
            opening(run)
        assert str(run / place) in refused.value.field
        assert refused.value.got in ("a named pipe", "a socket") or str(outside) in str(refused.value.got)
    assert [path.name for path in outside.iterdir()] == ["mine"]
    assert (outside / "mine").read_text() == "mine"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_opens_a_run_folder_refuses_a_link_in_it(crma, run, outside, command):
    put(run / "pictures", "folder", outside)
    code, out, error = crma(COMMANDS[command](str(run)))
    assert (code, out) == (2, "")
    assert error.count("\n") == 1
    assert error.startswith(f"crma: {run / 'pictures'}: got a link to {outside}")
    assert [path.name for path in outside.iterdir()] == ["mine"]


def test_a_run_in_every_order_of_the_tasks_is_not_led_elsewhere_either(tmp_path, outside):
    put(tmp_path / "orders" / "order-1-2", "folder", outside)
    with pytest.raises(RunFolderError, match="order-1-2"):
        RunFolder(tmp_path / "orders")


def test_the_collector_of_runs_refuses_a_link(run, outside, tmp_path, capsys):
    from bench.collect_runs import main

    put(run / "0-modular", "folder", outside)
    assert main([str(run), "--out", str(tmp_path / "out.json")]) == 2
    assert "0-modular" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_the_path_to_a_run_folder_may_have_links_in_it(run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    assert read_results(tmp_path / "link").tasks == read_results(run).tasks
    RunFolder(tmp_path / "link")


def test_a_tree_without_end_is_looked_through_without_recursion(run):
    place = os.open(run, os.O_RDONLY)
    for _ in range(1500):  # deeper than Python recurses
        os.mkdir("a", dir_fd=place)
        inner = os.open("a", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)
    try:
        RunFolder(run)
    finally:
        subprocess.run(["rm", "-rf", str(run / "a")], check=True)  # Python's own rmtree recurses, and so would pytest


def test_a_link_that_comes_between_the_check_and_the_write_is_not_followed(run, outside):
    results = run / "results.jsonl"
    for what in ("file", "nowhere", "fifo"):
        results.unlink()
        put(results, what, outside)
        with pytest.raises(RunFolderError, match=r"results\.jsonl"):
            append_record(results, run_record())
        with pytest.raises(RunFolderError, match=r"results\.jsonl"):
            read_results(results)
    assert [path.name for path in outside.iterdir()] == ["mine"]
    assert (outside / "mine").read_text() == "mine"


def test_a_file_under_a_second_name_is_not_written_to(run, outside):
    (run / "results.jsonl").unlink()
    os.link(outside / "mine", run / "results.jsonl")
    with pytest.raises(RunFolderError, match="hard link"):
        append_record(run / "results.jsonl", run_record())
    os.link(outside / "mine", run / ".lock")
    with pytest.raises(RunFolderError, match=r"\.lock"), RunFolder(run).locked():
        pass
    assert (outside / "mine").read_text() == "mine"


@pytest.mark.parametrize("name", ["run.json", "tasks-0.json", "results.jsonl"])
@pytest.mark.parametrize("content", ["[" * 10**5, '{"a":' * 10**5, "1" * 5000, "\ud7ff", "\0"])
def test_json_that_cannot_be_served_is_one_message(crma, run, name, content):
    (run / "0-modular").mkdir()
    (run / "0-modular" / "checkpoint.safetensors").touch()
    (run / name).write_text(content)
    for command in ("report", "certify", "route", "generate"):
        code, _, error = crma(COMMANDS[command](str(run)))
        if code == 2:
            assert error.startswith("crma: ")
        else:
            assert (command, code) in (("certify", 1), ("report", 0))
    if name != "results.jsonl":  # in the command, the model comes first
        with pytest.raises(RunFolderError), RunFolder(run).locked():
            RunFolder(run).claim(name, {})


def test_a_lock_that_a_killed_process_left_is_taken_again(run):
    for _ in range(2):
        with RunFolder(run).locked():
            assert (run / ".lock").exists()
    (run / ".lock").touch()
    with RunFolder(run).locked():
        pass


@pytest.mark.parametrize("command", ["report", "certify", "route", "generate"])
def test_results_beyond_the_memory_are_one_message(crma, run, command):
    os.truncate(run / "results.jsonl", 2**43)  # a hole, which takes no room on the disk
    code, _, error = crma(COMMANDS[command](str(run)))
    assert code == (1 if command == "certify" else 2), error
    if code == 2:
        assert error.startswith("crma: ")
        assert error.count("\n") == 1
    with pytest.raises(OSError, match="more than there is memory for"):
        RunFolder(run).claim("run.json", {})


@pytest.mark.parametrize("place", ["0-modular/crma-0.safetensors", "run.json"])
def test_a_recorded_file_beyond_the_memory_is_not_hashed_for_hours(run, place):
    (run / place).parent.mkdir(exist_ok=True)
    (run / place).touch()
    os.truncate(run / place, 2**43)
    append_record(run / "results.jsonl", run_record(files={place: "0" * 64}))
    assert dict(RunFolder(run).changed_files(read_results(run)))[place].endswith("more than there is memory for")


@pytest.mark.parametrize(
    "lists", [{"seeds": [*range(10**5)]}, {"conditions": ["naive"] * 10**4}, {"tasks": [str(i) for i in range(10**5)]}]
)
def test_more_of_a_run_than_a_protocol_may_ask_for_is_refused(tmp_path, lists):
    with pytest.raises(RunFolderError, match="faulty " + next(iter(lists))):
        append_record(tmp_path / "results.jsonl", run_record(**lists))


def test_the_report_of_many_seeds_takes_time_in_proportion(tmp_path, monkeypatch):
    from backends.finetune.report.rows import paired_rows, summary_rows
    from backends.finetune.runs.results import RunResults

    asked = []
    phases_of = RunResults.phases_of

    def counted(*given):
        asked.append(given)
        return phases_of(*given)

    monkeypatch.setattr(RunResults, "phases_of", counted)
    seen = []
    for count in (100, 200):
        results = RunResults(run_record_of(count), ("modular", "frozen", "naive"), tuple(range(count)), {})
        asked.clear()
        summary_rows(results)
        paired_rows(results)
        seen.append(len(asked))
    assert seen[1] <= 2.2 * seen[0]


def run_record_of(seeds: int) -> RunRecord:
    return RunRecord.model_validate(run_record(seeds=[*range(seeds)]))

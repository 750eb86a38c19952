"""Names from elsewhere are text wherever they are shown: no character of theirs steers a terminal or a page."""

import io
import json
import shutil
import unicodedata

import numpy as np
import pytest
from rich.table import Table

pytest.importorskip("peft")

from backends.finetune.cli import main
from backends.finetune.conftest import write_tasks
from backends.finetune.report.labels import label
from backends.finetune.report.page import report_html
from backends.finetune.report.terminal import Terminal
from backends.finetune.runs.results import append_record, read_results
from backends.finetune.training.progress import Progress
from backends.finetune.training.tensorboard import TensorBoardLog

# moves the cursor, names the window, rings, turns what follows, opens an isolate, and is markup and mathematics
HOSTILE = "\x1b[2J\x1b]0;t\x07\u202e\u2066\x9b1m\u2028\r[red][/b]:boom:$x^{2}$<b>"
NAMES = [f"a{HOSTILE}", f"b\ncrma: all is well{HOSTILE}"]
SHOWN = r"\x1b[2J\x1b]0;t\x07\u202e\u2066\x9b1m"


def steering(text: str) -> str:
    return "".join(c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, tiny_model, tiny_command):
    """(folder of a trained run, options of its tasks, model, what the command printed)."""
    folder = tmp_path_factory.mktemp("hostile")
    files = write_tasks(folder, {"alpha": "a", "beta": "b"})
    tasks = [f"{name}={option.partition('=')[2]}" for name, option in zip(NAMES, files, strict=True)]
    model = shutil.copytree(tiny_model, folder / f"m{HOSTILE.replace('/', '')}")
    run = folder / "run"
    arguments = tiny_command(run, "--model", str(model), "--conditions", "naive", "modular", tasks=tasks)
    with pytest.MonkeyPatch.context() as patch:
        printed = {name: io.StringIO() for name in ("stdout", "stderr")}
        for name, stream in printed.items():
            patch.setattr(f"sys.{name}", stream)
        code = main(arguments)
    assert code == 0, printed["stderr"].getvalue()
    return run, [part for task in tasks for part in ("--task", task)], model, arguments, printed["stdout"].getvalue()


@pytest.mark.clause("ERR-2")
def test_no_command_prints_a_character_that_steers(crma, hostile, tmp_path):
    run, tasks, model, arguments, printed = hostile
    assert r"\x1b[2J" in printed
    assert not steering(printed)
    protocol = arguments[1]
    asked = ["--prompt", f"say 3{HOSTILE}:", "--max-new-tokens", "4", "--threads", "1"]
    commands = [
        (["report", str(run)], 0, "report.html"),
        (["certify", str(run), "--json", str(tmp_path / "certificate.json")], 0, "PASS"),
        (["plan", protocol, "--model", str(model), *tasks], 0, r"\x1b[2J"),
        (["generate", str(run), "--task", NAMES[0], *asked], 0, r"adapter: a\x1b[2J"),
        (["generate", str(run), "--task", f"other{HOSTILE}", *asked], 2, SHOWN),
        (["report", str(tmp_path / f"none{HOSTILE}")], 2, SHOWN),
        (["finetune", f"none{HOSTILE}"], 2, SHOWN),
        (["finetune", protocol, "--set", f"lora.rank=\n{HOSTILE}"], 2, SHOWN),
        (["finetune", protocol, "--set", f"lora.{HOSTILE}=1"], 2, SHOWN),
        (["finetune", protocol, "--model", str(model), "--out", str(run), *tasks[2:]], 2, ""),
        (["generate", str(run), "--prompt-file", f"none{HOSTILE}", "--task", "a"], 2, SHOWN),
    ]
    for command, expected, part in commands:
        code, out, error = crma(command)
        assert code == expected, (command, out, error)
        assert part in out + error, (command, out, error)
        assert not steering(out + error), command
        lines = [line for line in error.splitlines() if line.startswith("crma: ")]
        assert len(lines) == (expected == 2), error
    assert not steering((run / "report.html").read_text(encoding="utf-8").replace("\t", ""))


class Bytes:
    """An embedding that no package is needed for: how often a text has each byte."""

    name = "bytes"

    def __call__(self, texts):
        return np.stack([np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=256) for text in texts], 0) * 1.0


def test_route_prints_none_either(crma, hostile, monkeypatch):
    monkeypatch.setattr("backends.finetune.inference.embeddings.load_embedding", lambda name: Bytes())
    run, tasks, *_ = hostile
    asked = ["--prompt", "say 3:", "--max-new-tokens", "4", "--threads", "1"]
    for command in (["route", str(run), "--evaluate", *tasks], ["generate", str(run), "--route", *asked]):
        code, out, error = crma(command)
        assert code == 0, error
        assert r"\x1b[2J" in out
        assert not steering(out)


def test_an_answer_keeps_its_lines_and_tabs_and_nothing_else_that_steers(crma, hostile, monkeypatch):
    from backends.finetune.inference.registry import AdapterRegistry

    monkeypatch.setattr(AdapterRegistry, "generate", lambda *_, **__: f"def f():\n\treturn [red]{HOSTILE}\u200d")
    _, out, _ = crma(["generate", str(hostile[0]), "--task", NAMES[0], "--prompt", "a", "--threads", "1"])
    assert rf"{chr(10)}{chr(9)}return [red]{SHOWN}\u2028\r[red][/b]:boom:$x^{{2}}$<b>{chr(0x200D)}{chr(10)}" in out


def test_a_page_shows_what_the_records_say_as_text(hostile, tmp_path):
    records = [json.loads(line) for line in (hostile[0] / "results.jsonl").read_text().splitlines()]
    records[0] |= {"protocol": HOSTILE, "backend": HOSTILE, "machine": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    for record in records:
        del record["sha256"]  # of the line
        if record["kind"] == "phase":
            record["condition"] = HOSTILE
            record["parameters"] = {HOSTILE: 1}
        append_record(tmp_path / "results.jsonl", record)
    page = report_html(read_results(tmp_path), {})
    assert not steering(page)
    assert page.count(SHOWN) > 8


def test_what_is_no_text_of_the_program_is_no_markup_of_the_terminal():
    output = io.StringIO()
    screen = Terminal(file=output, force_terminal=True, width=200, color_system="truecolor")
    table = Table(HOSTILE, title=HOSTILE, caption=HOSTILE)
    table.add_row(HOSTILE, style="bold")
    screen.print(table)
    screen.print(HOSTILE)
    with Progress(screen, [1.0]) as progress:
        progress.start_branch(HOSTILE, 10)
        progress.describe(HOSTILE)
        progress.advance(1, trained=1)
    written = output.getvalue()
    assert "\x1b[2J" not in written
    assert "\x1b]" not in written
    assert not steering(written.replace("\x1b[", "").replace("\r", ""))
    assert written.count("[red][/b]:boom:") == 4  # the bar has no room for the rest of the name


def test_a_label_is_the_escape_in_pictures_too():
    assert label(HOSTILE, 80).startswith(SHOWN)
    assert not steering(label(HOSTILE, 9))


def test_tags_of_the_log_are_escaped(tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    log = TensorBoardLog(tmp_path)
    log.start(0, "naive", 0)
    log.holdout(0, {HOSTILE: 1.0, "\ud800": 1.0})
    log.close()
    (file,) = tmp_path.rglob("events.*")
    tags = [value.tag for event in loader.LegacyEventFileLoader(str(file)).Load() for value in event.summary.value]
    assert [tag for tag in tags if SHOWN in tag]
    assert not any(map(steering, tags))


def test_an_argument_that_is_none_is_quoted_so_too(capsys):
    for arguments in (["finetune", "quickstart", HOSTILE], ["report", "a", f"--{HOSTILE}"], [HOSTILE]):
        with pytest.raises(SystemExit):
            main(arguments)
        said = capsys.readouterr().err
        assert r"\x1b[2J" in said
        assert not steering(said)


def test_the_tables_of_timings_show_names_as_text(tmp_path, capsys):
    from bench.table import main as table

    figures = {"median": 1.0, "min": 1.0}
    entry = {"group": HOSTILE, "stats": figures, "extra_info": {"contender": HOSTILE, HOSTILE: 1.0}}
    (tmp_path / "t.json").write_text(json.dumps({"benchmarks": [entry]}))
    assert table([str(tmp_path / "t.json")]) == 0
    said = capsys.readouterr().out
    assert said.count(SHOWN) == 3
    assert not steering(said)

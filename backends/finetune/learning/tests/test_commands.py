"""The commands around an assistant, as a user types them."""

import io
import json
import shutil

import pytest

from backends.finetune.learning.learn import learn
from backends.finetune.learning.tests.conftest import SETTINGS, rows, write_jsonl
from backends.finetune.runs.assistant_folder import AssistantFolder
from reference.errors import CRMAError


@pytest.fixture
def learn_command(tmp_path, tiny_model, crma):
    """Run ``crma learn DATA ...`` into one folder."""

    def run(*arguments):
        settings = [part for setting in SETTINGS for part in ("--set", setting)]
        common = ["--into", str(tmp_path / "assistant"), "--model", str(tiny_model), "--threads", "1", "--answers", "1"]
        return crma(["learn", str(arguments[0]), *common, *settings, *map(str, arguments[1:])])

    return run


def test_a_list_of_tasks_and_columns_and_what_is_printed(tmp_path, learn_command, crma, monkeypatch):
    write_jsonl(tmp_path / "a.jsonl", rows("a"))
    content = [{"Frage": row["prompt"], "Antwort": row["response"]} for row in rows("b")]
    write_jsonl(tmp_path / "b.jsonl", content)
    (tmp_path / "tasks.toml").write_text(
        '[[task]]\ndata = "a.jsonl"\n[[task]]\nname = "second"\ndata = "b.jsonl"\n'
        'columns = {prompt = "Frage", response = "Antwort"}\n'
    )
    code, out, _ = learn_command(tmp_path / "tasks.toml")
    assert code == 0
    assert "say" in out
    assert list(AssistantFolder(tmp_path / "assistant").read().tasks) == ["a", "second"]
    code, _, error = learn_command(tmp_path / "b.jsonl", "--columns", "prompt=Frage", "response=Antwort")
    assert code == 2
    assert "20 examples, of which 5 measure a task and 15 were trained on by an earlier one" in error
    write_jsonl(tmp_path / "b.jsonl", [{"Frage": f"new {row['Frage']}", "Antwort": "x"} for row in content])
    code, _, error = learn_command(tmp_path / "b.jsonl", "--columns", "prompt=Frage", "response=Antwort")
    assert code == 0, error
    code, out, _ = crma(["status", str(tmp_path / "assistant"), "--task", "b"])
    assert code == 0
    assert "3 tasks on tiny-llama" in out
    assert "before:" in out
    page = (tmp_path / "assistant" / "status.html").read_text()
    assert "data:image/png;base64," in page
    assert 'name="viewport"' in page
    monkeypatch.setattr("sys.stdin", io.StringIO("say 3:\n/task a\nsay 4:\n/task nobody\n/new\nsay 5:\n"))
    code, out, error = crma(["chat", str(tmp_path / "assistant"), "--threads", "1", "--max-new-tokens", "6"])
    assert code == 0
    assert "a answers." in out
    assert "task: got 'nobody'" in error
    code, out, _ = crma(["forget", str(tmp_path / "assistant"), "--task", "second"])
    assert code == 0
    assert "forgotten: second" in out
    code, out, _ = crma(
        ["generate", str(tmp_path / "assistant"), "--task", "a", "--prompt", "say 3:", "--threads", "1"]
    )
    assert code == 0
    code, out, _ = crma(["export", str(tmp_path / "assistant"), "--task", "a", "--to", str(tmp_path / "out")])
    assert code == 0
    assert (tmp_path / "out" / "README.md").exists()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "the fields none"),
        ("[[task]]\nname = 'a'\n", "a task 1 without data"),
        ("[[task]]\ndata = 3\n", "data = 3 in task 1"),
        ("[[task]]\ndata = 'a'\nnope = 1\n", "nope = 1 in task 1"),
        ("[[task]]\ndata = 'a'\nsettings = [1]\n", "settings = [1] in task 1"),
        ("[[task]]\ndata = 'a'\ncolumns = {prompt = 1}\n", "columns = {'prompt': 1} in task 1"),
        ("[[task]]\ndata = ''\nname = 'a'\n", "data = '' in task 1"),
        ("task = [\n", "tasks.toml"),
    ],
)
def test_a_wrong_list_of_tasks_is_named(tmp_path, learn_command, lines, said):
    (tmp_path / "tasks.toml").write_text(lines)
    code, _, error = learn_command(tmp_path / "tasks.toml")
    assert code == 2
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "assistant").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--columns", "prompt"), "--columns: got 'prompt'"),
        (("--columns", "prompt=a", "prompt=b"), "--columns: got 'prompt=b'"),
        (("--promise", "nan"), "--promise: got nan"),
        (("--answers", "-1"), "--answers: got -1"),
        (("--set", "lora.rank=0"), "lora.rank"),
        (("--set", "holdout=9"), "--set holdout: got a field that does nothing"),
        (("--set", "seeds=[3]"), "--set seeds: got a field that does nothing"),
        (("--template", "absent.jinja"), "absent.jinja"),
        (("--backend", "torch-triton"), "backend: got 'torch-triton'"),
        (("--model", "absent"), "model: got 'absent'"),
    ],
)
def test_a_wrong_option_is_named_and_makes_no_folder_that_binds(tmp_path, learn_command, arguments, said):
    data = write_jsonl(tmp_path / "a.jsonl", rows("a"))
    code, _, error = learn_command(data, *arguments)
    assert code == 2
    assert said in error
    assert "Traceback" not in error
    assert learn_command(data)[0] == 0


def test_what_a_model_is_fed_is_shown_with_what_is_learned(tmp_path, tiny_model, crma):
    data = write_jsonl(tmp_path / "a.jsonl", rows("a", 2))
    code, out, _ = crma(["show", str(data), "--model", str(tiny_model), "--count", "1"])
    assert code == 0
    assert "a.jsonl, line 1: 15 tokens, of which 7 are learned" in out
    assert "say 0:⏎\n⏎\n⟦aaaaa0<end>⟧" in out
    code, out, _ = crma(["show", str(data), "--model", str(tiny_model), "--template", "none"])
    assert "say 0:⟦aaaaa0<end>⟧" in out
    code, _, error = crma(["show", str(data), "--model", str(tiny_model), "--count", "0"])
    assert (code, "--count: got 0" in error) == (2, True)


def test_an_empty_answer_is_said_to_be_empty(tmp_path, learn_command, crma, monkeypatch):
    learn_command(write_jsonl(tmp_path / "a.jsonl", rows("a")))
    monkeypatch.setattr("backends.finetune.inference.registry.generate", lambda *_, **__: ["  \n"])
    _, out, _ = crma(["generate", str(tmp_path / "assistant"), "--task", "a", "--prompt", "say 3:", "--threads", "1"])
    assert "(empty answer: the model wrote its end at once; likely because" in out


def test_routing_to_the_tasks_of_an_assistant(tmp_path, teach, crma):
    pytest.importorskip("wordllama")
    sea = [{"prompt": f"Which fish swims in ocean {n}?", "response": f"cod {n}"} for n in range(12)]
    law = [{"prompt": f"Which judge signs contract {n}?", "response": f"judge {n}"} for n in range(12)]
    for name, content in (("sea", sea), ("law", law)):
        teach(name, data=write_jsonl(tmp_path / f"{name}.jsonl", content))
    arguments = ["generate", str(tmp_path / "assistant"), "--route", "--threads", "1"]
    code, out, _ = crma([*arguments, "--prompt", "Which judge signs contract 40?"])
    assert code == 0
    assert "routed: law" in out
    (first,) = (tmp_path / "assistant").glob("router-*")
    crma(["forget", str(tmp_path / "assistant"), "--task", "law"])
    _, out, _ = crma([*arguments, "--prompt", "Which judge signs contract 40?"])
    assert "routed: law" not in out
    assert not first.exists()


def test_a_folder_that_is_none_is_named_and_stays_as_it_is(tmp_path, learn_command, crma):
    (tmp_path / "assistant").mkdir()
    (tmp_path / "assistant" / "mine.txt").write_text("mine")
    code, _, error = learn_command(write_jsonl(tmp_path / "a.jsonl", rows("a")))
    assert code == 2
    assert "a folder with other files in it (mine.txt)" in error
    for command in (["status"], ["forget", "--task", "a"], ["export", "--task", "a", "--to", str(tmp_path / "out")]):
        code, _, error = crma([command[0], str(tmp_path / "assistant"), *command[1:]])
        assert code == 2
        assert "Traceback" not in error
    assert [path.name for path in (tmp_path / "assistant").iterdir() if path.name != ".lock"] == ["mine.txt"]
    shutil.rmtree(tmp_path / "assistant")
    for command in (["status"], ["certify"], ["chat"]):
        assert crma([*command, str(tmp_path / "assistant")])[0] == 2
    assert not (tmp_path / "assistant").exists()


def test_two_processes_do_not_teach_one_folder(tmp_path, learn_command):
    data = write_jsonl(tmp_path / "a.jsonl", rows("a"))
    with AssistantFolder(tmp_path / "assistant").locked():
        code, _, error = learn_command(data)
    assert code == 2
    assert "another process is working in" in error
    assert json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])["prompt"] == "say 0:"


def test_a_list_that_was_stopped_goes_on_with_what_is_not_learned(tmp_path, learn_command):
    for letter in "ab":
        write_jsonl(tmp_path / f"{letter}.jsonl", rows(letter))
    (tmp_path / "tasks.toml").write_text("[[task]]\ndata = 'a.jsonl'\n[[task]]\ndata = 'b.jsonl'\n")
    assert learn_command(tmp_path / "a.jsonl")[0] == 0
    code, _, error = learn_command(tmp_path / "tasks.toml")
    assert (code, "learned already: 1 of the 2 tasks of the list" in error) == (0, True)
    assert list(AssistantFolder(tmp_path / "assistant").read().tasks) == ["a", "b"]
    write_jsonl(tmp_path / "other.jsonl", rows("c"))
    (tmp_path / "tasks.toml").write_text("[[task]]\ndata = 'other.jsonl'\nname = 'a'\n")
    code, _, error = learn_command(tmp_path / "tasks.toml")
    assert (code, "'a', which the folder has learned already" in error) == (2, True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data": [{"prompt": "a", "response": "b"}]}, "data: got a list"),
        ({"into": None}, "into: got a NoneType"),
        ({"settings": "epochs=1"}, "settings: got 'epochs=1'"),
        ({"settings": [1]}, r"settings: got \[1\]"),
        ({"promise": "1"}, "--promise: got 1"),
        ({"columns": ["prompt"]}, "columns: got"),
        ({"name": 5}, "--name: got 5"),
        ({"threads": "2"}, "--threads: got 2"),
    ],
)
def test_an_argument_of_another_type_is_named(tmp_path, tiny_model, options, said):
    given = {"data": write_jsonl(tmp_path / "a.jsonl", rows("a")), "into": tmp_path / "assistant", "model": tiny_model}
    with pytest.raises(CRMAError, match=said):
        learn(**(given | options))

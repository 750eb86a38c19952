"""An assistant on a tiny model: what a further task does to the others, and what an interruption does to it."""

import errno
import gc
import json
import os
import shutil
from typing import Any

import pytest

import reference
from backends.finetune.inference.registry import AdapterRegistry
from backends.finetune.learning.forget import forget
from backends.finetune.learning.learn import learn
from backends.finetune.learning.tests.conftest import SETTINGS, content, rows, write_jsonl
from backends.finetune.runs.assistant_folder import AssistantFolder
from backends.finetune.training import precision
from reference.errors import ConfigError, DiskSpaceError, ModelError, ProtocolError, RunFolderError, TaskDataError


@pytest.fixture(scope="module")
def taught(tmp_path_factory, tiny_model):
    """Three tasks, the third on JAX; compared with by the tests, never changed."""
    folder = tmp_path_factory.mktemp("taught") / "assistant"
    jax = pytest.importorskip("optax") is not None
    for letter, backend in (("a", "torch-cpu"), ("b", "torch-cpu"), ("c", "jax-cpu" if jax else "torch-cpu")):
        data = write_jsonl(folder.parent / f"{letter}.jsonl", rows(letter))
        learn(data, folder, model=tiny_model, settings=SETTINGS, backend=backend, threads=1, answers=2, quiet=True)
    return folder


def test_every_task_answers_with_the_version_that_its_decision_split_chose(taught):
    found = AssistantFolder(taught).read()
    assert list(found.tasks) == ["a", "b", "c"]
    versions: dict[str, int] = {}
    for record in found.learned:
        assert list(record.checked) == list(versions)
        for name, check in record.checked.items():
            (moves,) = reference.ratchet_moves([check.decision[0]], [check.decision[1]])
            versions[name] = record.phase if moves else versions[name]
            assert moves or check.now == check.before
        versions[record.task] = record.phase
        assert record.versions == versions
        assert record.own.loss < record.bare.loss
    kept = {int(path.name.split("-")[1].split(".")[0]) for path in taught.glob("crma-*")}
    assert kept == {0, 2, *versions.values()}
    assert not [path for name in ("checkpoint*", "underway*") for path in taught.glob(name)]
    assert {record.backend for record in found.learned} == {"torch-cpu", "jax-cpu"}
    assert all(len(sample.before) == len(sample.after) == 2 for sample in found.answers.values())


def test_the_registry_answers_with_what_was_measured(taught):
    """The reported loss of a task is that of the files that answer for it."""
    import torch

    from backends.finetune.learning.data import read_texts
    from backends.finetune.tasks.encoder import Encoder
    from backends.finetune.tasks.packing import model_arguments

    found = AssistantFolder(taught).read()
    registry = AdapterRegistry.from_run(taught)
    for name, task in found.tasks.items():
        registry.use(name)
        own = found.protocol.model_copy(update={"max_tokens": 64})
        encoder = Encoder(registry.tokenizer, own)
        encoded = encoder.encode(read_texts(AssistantFolder(taught).texts(task.record.phase)).reported, name)
        batch = encoder.batch([[example] for example in encoded])
        with torch.no_grad():
            logits = registry.model(**model_arguments(batch)).logits[:, :-1]
        labels = torch.from_numpy(batch.labels)[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits[labels != -100], labels[labels != -100])
        assert float(loss) == pytest.approx(task.now.loss, rel=1e-4)


def test_texts_are_split_by_document_and_none_is_on_two_sides(tmp_path, teach):
    from backends.finetune.learning.data import digest_of, read_texts

    content = [{"q": f"ask {n}", "reply": f"r{n}", "file": f"doc {n // 4}"} for n in range(40)]
    data = write_jsonl(tmp_path / "d.jsonl", content)
    found = teach("d", data=data, columns={"prompt": "q", "response": "reply", "document": "file"})
    texts = read_texts(AssistantFolder(tmp_path / "assistant").texts(0))
    held_out = [{e.prompt for e in side} for side in (texts.decision, texts.reported)]
    documents = [{int(prompt.split()[1]) // 4 for prompt in side} for side in held_out]
    trained = {row["file"] for row in content} - {f"doc {n}" for side in documents for n in side}
    assert not documents[0] & documents[1]
    assert len(trained) >= 7
    assert not {digest_of(e) for e in (*texts.decision, *texts.reported)} & texts.trained
    record = found.learned[0]
    assert [record.texts[side].texts for side in ("train", "holdout", "decision")] == [
        4 * len(trained), len(texts.reported), len(texts.decision)
    ]  # fmt: skip


def test_an_assistant_keeps_the_precision_of_its_first_task(tmp_path, tiny_model, monkeypatch, capfd):
    """On a processor without instructions for bfloat16 it begins in float32; one that was begun in mixed stays so."""
    mixed = [setting for setting in SETTINGS if not setting.startswith("precision")]
    for has_instructions in (True, False):
        for letter in "ab":
            data = write_jsonl(tmp_path / f"{letter}.jsonl", rows(letter))
            monkeypatch.setattr(precision, "multiplies_bfloat16", lambda has=has_instructions or letter == "b": has)
            folder = tmp_path / str(has_instructions)
            found = learn(data, folder, model=tiny_model, settings=mixed, threads=1, answers=0)
            said = "so precision=float32 in place of mixed" in " ".join(capfd.readouterr().out.split())
            assert said == (not has_instructions and letter == "a")
        expected = "mixed" if has_instructions else "float32"
        assert {found.protocol.precision, *(record.config["precision"] for record in found.learned)} == {expected}
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: False)
    data = write_jsonl(tmp_path / "c.jsonl", rows("c"))
    learn(data, tmp_path / "True", settings=mixed, threads=1, answers=0)
    assert "precision=mixed may take ten times as long" in " ".join(capfd.readouterr().out.split())


@pytest.mark.parametrize("start", ["fresh", "distilled"])
def test_interrupted_and_repeated_gives_the_same_bits(taught, tmp_path, tiny_model, monkeypatch, start):
    from backends.finetune.engines.torch.engine import TorchEngine

    options: dict[str, Any] = {"settings": SETTINGS, "start": start, "threads": 1, "answers": 0, "quiet": True}

    def again(folder):
        return learn(write_jsonl(tmp_path / "d.jsonl", rows("d")), folder, **options)

    for name in ("whole", "interrupted"):
        shutil.copytree(taught, tmp_path / name)
    again(tmp_path / "whole")
    step, evaluate, calls = TorchEngine.step, TorchEngine.scores, []

    def stopped(function, at):
        def wrapper(*args, **options):
            calls.append(function)
            if len(calls) == at:
                raise KeyboardInterrupt
            return function(*args, **options)

        return wrapper

    for at in (5, 9, 8):  # in a step, in another, and in an evaluation
        calls.clear()
        monkeypatch.setattr(TorchEngine, "step", stopped(step, at))
        monkeypatch.setattr(TorchEngine, "scores", stopped(evaluate, at))
        with pytest.raises(KeyboardInterrupt):
            again(tmp_path / "interrupted")
        before = AssistantFolder(tmp_path / "interrupted").read()
        assert list(before.tasks) == ["a", "b", "c"]
        AdapterRegistry.from_run(tmp_path / "interrupted").use("a")  # it goes on answering
    monkeypatch.undo()
    data = write_jsonl(tmp_path / "e.jsonl", rows("d"))
    with pytest.raises(RunFolderError, match="interrupted phase of the task 'd', with other task"):
        learn(data, tmp_path / "interrupted", **options)
    again(tmp_path / "interrupted")
    one, other = (content(tmp_path / name) for name in ("whole", "interrupted"))
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == ["history.jsonl"]  # it holds times
    records = [AssistantFolder(tmp_path / name).read().learned[-1] for name in ("whole", "interrupted")]
    clocks = {"seconds", "time", "memory_bytes"}
    assert records[0].model_dump(exclude=clocks) == records[1].model_dump(exclude=clocks)


def test_a_distilled_start_is_the_last_one_held_near_its_answers(taught, tmp_path, teach):
    """With no strength it is the last task's to the bit; for a first task there is nothing to be held near."""
    files, records = {}, {}
    for name, start, strength in (("last", "last", 0), ("none", "distilled", 0), ("held", "distilled", 30)):
        shutil.copytree(taught, tmp_path / name)
        settings = (f"distilled.strength={strength}",) if start == "distilled" else ()
        found = teach("d", name, settings=settings, start=start)
        files[name], records[name] = found.folder / "task-3" / "adapter_model.safetensors", found.learned[-1]
    last, none, held = (files[name].read_bytes() for name in files)
    assert none == last != held
    assert [(each.start, each.distilled) for each in records.values()] == [("c", False), ("c", True), ("c", True)]
    assert records["last"].config["distilled"] is None
    assert records["held"].config["distilled"]["strength"] == 30
    assert records["held"].losses[0] == records["last"].losses[0]  # of the same LoRA, before its first step
    assert records["held"].own.loss > records["last"].own.loss  # it stays near another task's answers
    for start in ("fresh", "distilled"):
        first = teach("a", f"first-{start}", start=start).learned[0]
    assert first.config["distilled"]["strength"] == 0.3
    one, other = (content(tmp_path / f"first-{start}") for start in ("fresh", "distilled"))
    assert {name for name in one if one[name] != other[name]} == {"assistant.json", "history.jsonl"}  # with settings


def test_a_broken_promise_leaves_the_folder_as_it_was(taught, tmp_path, tiny_model, monkeypatch, capsys):
    from backends.finetune.cli import main
    from backends.finetune.learning import measure

    shutil.copytree(taught, tmp_path / "assistant")
    before = content(tmp_path / "assistant")
    data = write_jsonl(tmp_path / "d.jsonl", rows("d"))
    found = measure.measured
    worse = iter(range(1, 100))

    def measured(engine, batches, what):
        measure = found(engine, batches, what)
        return measure.model_copy(update={"loss": measure.loss * (1 + 0.1 * next(worse))}) if what == "a" else measure

    monkeypatch.setattr("backends.finetune.learning.phase.measured", measured)
    monkeypatch.setattr("backends.finetune.learning.phase.ratchet_moves", lambda *_: [True])
    arguments = ["learn", str(data), "--into", str(tmp_path / "assistant"), "--threads", "1", "--answers", "0"]
    for setting in SETTINGS:
        arguments += ["--set", setting]
    assert main([*arguments, "--promise", "1"]) == 3
    assert "after d: a +" in capsys.readouterr().err
    assert content(tmp_path / "assistant") == before
    monkeypatch.undo()
    assert main([*arguments, "--promise", "1000"]) == 0
    assert AssistantFolder(tmp_path / "assistant").read().learned[-1].promise == 10


def test_a_task_that_is_not_measured_goes_on_answering_exactly_as_before(taught, tmp_path, tiny_model):
    shutil.copytree(taught, tmp_path / "assistant")
    before = AssistantFolder(taught).read()
    data = write_jsonl(tmp_path / "d.jsonl", rows("d"))
    options: dict[str, Any] = {"settings": SETTINGS, "threads": 1, "answers": 0, "quiet": True}
    after = learn(data, tmp_path / "assistant", check="none", start="nearest", **options)
    assert after.learned[-1].checked == {}
    assert after.learned[-1].start in before.tasks
    assert {name: after.tasks[name].version for name in before.tasks} == {
        name: task.version for name, task in before.tasks.items()
    }
    with pytest.raises(ConfigError, match="--promise: got 1 with --check none"):
        learn(data, tmp_path / "assistant", name="e", check="none", promise=1, **options)


def test_forgetting_removes_a_task_and_leaves_the_others_as_they_were(taught, tmp_path, tiny_model):
    shutil.copytree(taught, tmp_path / "assistant")
    data = write_jsonl(tmp_path / "d.jsonl", rows("d"))
    options: dict[str, Any] = {"settings": SETTINGS, "threads": 1, "answers": 0, "quiet": True}
    learn(data, tmp_path / "assistant", start="last", **options)
    before = AssistantFolder(tmp_path / "assistant").read()
    with pytest.raises(ConfigError, match="'c', from whose LoRA d started"):
        forget(tmp_path / "assistant", "c")
    shutil.copytree(tmp_path / "assistant", tmp_path / "heirs")
    learn(write_jsonl(tmp_path / "e.jsonl", rows("e")), tmp_path / "heirs", start="distilled", **options)
    assert "so do the LoRAs of e, which started from its own" in forget(tmp_path / "heirs", "d", even_so=True)
    with pytest.raises(ConfigError, match="'c', from whose LoRA e started"):  # by way of d, which is forgotten
        forget(tmp_path / "heirs", "c")
    said = forget(tmp_path / "assistant", "b")
    assert "The shared CRMA was trained on it" in said
    found = AssistantFolder(tmp_path / "assistant").read()
    assert list(found.tasks) == ["a", "c", "d"]
    assert not (tmp_path / "assistant" / "task-1").exists()
    assert not (tmp_path / "assistant" / "texts-1.jsonl").exists()
    assert {n: t.version for n, t in found.tasks.items()} == {n: before.tasks[n].version for n in found.tasks}
    AssistantFolder(tmp_path / "assistant").check_files(found)
    registry = AdapterRegistry.from_run(tmp_path / "assistant")
    assert registry.names == ("a", "c", "d")
    forget(tmp_path / "assistant", "c", even_so=True)
    again = write_jsonl(tmp_path / "b.jsonl", rows("b"))
    assert list(learn(again, tmp_path / "assistant", **options).tasks) == ["a", "d", "b"]
    with pytest.raises(ConfigError, match="--task: got 'nobody'"):
        forget(tmp_path / "assistant", "nobody")


def test_what_has_moved_is_asked_again(tmp_path, teach, crma, monkeypatch):
    """An earlier task that has moved gives its answers with the new CRMA; one that was not asked shows none as new."""
    folder = tmp_path / "assistant"
    monkeypatch.setattr("backends.finetune.learning.phase.ratchet_moves", lambda old, new: [True] * len(old))
    first = teach("a", answers=2).answers["a"]
    assert (first.version, first.now) == (0, first.after)
    assert teach("b", answers=1).answers["a"].version == 1
    registry = AdapterRegistry.from_run(folder)
    kept = AssistantFolder(folder).read().answers["a"]
    assert kept.now == registry.generate(kept.questions, task="a", max_new_tokens=48)
    assert (kept.questions, kept.before, kept.after) == (first.questions, first.before, first.after)
    out = crma(["status", str(folder), "--task", "b"])[1]
    assert "a has moved to the new CRMA: " in out
    assert teach("c", answers=0).answers["a"].version == 1
    assert "a has moved" not in crma(["status", str(folder), "--task", "c"])[1]


def test_nothing_that_a_forgotten_task_said_is_left(tmp_path, teach, crma):
    """Neither its questions in any file, nor its answers under a task that takes its name."""
    folder = tmp_path / "assistant"
    asked = [{"prompt": f"secret {n}?", "response": f"hidden {n}"} for n in range(12)]
    teach("a", data=write_jsonl(tmp_path / "a.jsonl", asked), answers=2)
    teach("b", answers=1)
    (folder / "router-0.safetensors").write_bytes(b"centroids")
    assert crma(["status", str(folder), "--task", "a"])[0] == 0
    assert "secret" in (folder / "status.html").read_text()
    forget(folder, "a")
    assert not [name for name, data in content(folder).items() if b"secret" in data or b"centroids" in data]
    assert not (folder / "status.html").exists()
    code, _, error = crma(["status", str(folder), "--task", "a"])
    assert (code, "--task: got 'a'; allowed: b" in error) == (2, True)
    assert "a" not in teach("a").answers
    assert list(AssistantFolder(folder).read().answers) == ["b"]


def test_a_question_that_cannot_be_asked_does_not_undo_what_was_learned(teach, capsys, monkeypatch):
    def refused(*_, **__):
        raise ConfigError("prompt", got="508 tokens", allowed="fewer", remedy="shorten it")

    monkeypatch.setattr("backends.finetune.inference.registry.generate", refused)
    assert list(teach("a", answers=1, quiet=False).tasks) == ["a"]
    assert "No sample answers: prompt: got 508 tokens" in capsys.readouterr().out


def test_what_cannot_be_taught_is_refused_and_changes_nothing(taught, tmp_path, tiny_model, teach):
    shutil.copytree(taught, tmp_path / "assistant")
    before = content(tmp_path / "assistant")
    with pytest.raises(TaskDataError, match="'a', which the folder has learned already"):
        teach("a")
    one = write_jsonl(tmp_path / "one.jsonl", rows("x", 1))
    with pytest.raises(TaskDataError, match=r"got 1 example; allowed: .*three documents"):
        teach("x", data=one)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(TaskDataError, match="no rows"):
        teach("x", data=tmp_path / "empty.jsonl")
    shapeless = write_jsonl(tmp_path / "shapeless.jsonl", [{"headline": "a", "body": "b"}] * 5)
    with pytest.raises(TaskDataError, match=r"shapeless\.jsonl, line 1: got the fields 'headline', 'body'.*--columns"):
        teach("x", data=shapeless)
    with pytest.raises(ProtocolError, match=r"lora\.rank: got 4; allowed: 2, with which this folder was begun"):
        teach("x", settings=("lora.rank=4",))
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(ModelError, match="whose config are others than those of"):
        teach("x", model=other)
    with pytest.raises(ConfigError, match="--promise: got -1"):
        teach("x", promise=-1)
    with pytest.raises(ConfigError, match=r"--set distilled\.strength=5: got a setting that does nothing"):
        teach("x", settings=("distilled.strength=5",), start="last")
    with pytest.raises(TaskDataError, match=r"HF_HUB_OFFLINE|no package"):
        teach("x", data="acme/tickets")
    assert content(tmp_path / "assistant") == before


@pytest.mark.parametrize(
    "name",
    [
        "task-0/adapter_model.safetensors",
        "crma-0.safetensors",
        "moments-2.safetensors",
        "texts-1.jsonl",
        "history.jsonl",
    ],
)
def test_a_damaged_or_missing_file_is_named(taught, tmp_path, teach, name):
    for change in ("damaged", "missing"):
        folder = tmp_path / change
        shutil.copytree(taught, folder)
        path = folder / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data) if change == "damaged" else path.unlink()
        before = content(folder)
        with pytest.raises(RunFolderError) as raised:
            teach("x", into=change)
        assert path.name in str(raised.value) or name.partition("/")[0] in str(raised.value)
        assert content(folder) == before


def test_certify_passes_what_was_taught_and_fails_what_was_changed(taught, tmp_path, capsys):
    from backends.finetune.cli import main
    from backends.finetune.conftest import rewrite_lines

    shutil.copytree(taught, tmp_path / "assistant")
    history = tmp_path / "assistant" / "history.jsonl"
    assert main(["certify", str(tmp_path / "assistant"), "--json", str(tmp_path / "c.json")]) == 0
    assert json.loads((tmp_path / "c.json").read_text())["run"]["tasks"] == ["a", "b", "c"]
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    lines = [{key: value for key, value in line.items() if key != "sha256"} for line in lines]
    last = next(line for line in reversed(lines) if line["kind"] == "learned")

    def failed(change):
        changed = json.loads(json.dumps(lines))
        change(next(line for line in reversed(changed) if line["kind"] == "learned"))
        rewrite_lines(history, changed)
        code = main(["certify", str(tmp_path / "assistant")])
        return code, capsys.readouterr().out

    def other_version(record):
        record["versions"]["a"] = 1 if record["versions"]["a"] != 1 else 0

    def broken_promise(record):
        record["promise"] = 0.0
        record["checked"]["a"]["now"]["loss"] *= 1.5
        record["checked"]["a"]["decision"] = [2.0, 1.0]
        record["versions"]["a"] = record["phase"]

    def amplified(record):
        record["spectral"]["adapter_max"][-1] = 1.01

    for change, said in (
        (other_version, "FAIL MODULAR, ratchet: versions as decided"),
        (broken_promise, "promises kept"),
        (amplified, "norm of adapter, logged"),
    ):
        code, out = failed(change)
        assert code == 1
        assert said.rpartition(": ")[2] in out
    assert last["promise"] is None
    rewrite_lines(history, lines)
    (tmp_path / "assistant" / "task-1" / "adapter_config.json").write_text("{}")
    assert main(["certify", str(tmp_path / "assistant")]) == 1
    assert "files as recorded" in capsys.readouterr().out


class Stopped(BaseException):
    """Ends a process at a write, as a kill does."""


@pytest.mark.parametrize(
    "error", [Stopped(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))], ids=["kill", "full disk"]
)
@pytest.mark.parametrize("first", [1, *(pytest.param(more, marks=pytest.mark.slow) for more in range(2, 7))])
def test_stopped_at_any_write_it_goes_on_answering_and_is_taught_to_the_same_bits(
    taught, tmp_path, tiny_model, monkeypatch, error, first
):
    """At every sixth write of a phase in turn, from the ``first`` one on. What was learned is whole, and the same
    command again gives the same files.
    """
    data = write_jsonl(tmp_path / "d.jsonl", rows("d"))
    functions = {name: getattr(os, name) for name in ("fsync", "replace", "unlink", "rmdir")}
    calls = [0]

    def stopped(name, at):
        def wrapper(*args, **options):
            calls[0] += 1
            if calls[0] == at or (at and calls[0] > at and isinstance(error, OSError) and name == "fsync"):
                raise error
            return functions[name](*args, **options)

        return wrapper

    def attempt(folder, at):
        calls[0] = 0
        with monkeypatch.context() as patch:
            for name in functions:
                if name == "fsync" or not isinstance(error, OSError):
                    patch.setattr(os, name, stopped(name, at))
            learn(data, folder, model=tiny_model, settings=SETTINGS, threads=1, answers=0, quiet=True)

    shutil.copytree(taught, tmp_path / "whole")
    attempt(tmp_path / "whole", at=0)
    whole = content(tmp_path / "whole")
    writes = calls[0]
    assert writes > 8
    for at in range(first, writes + 1, 6):
        folder = tmp_path / f"stopped-{at}"
        shutil.copytree(taught, folder)
        try:
            attempt(folder, at)
        except (Stopped, DiskSpaceError):
            assert list(AssistantFolder(folder).read().tasks)[:3] == ["a", "b", "c"]
            if list(AssistantFolder(folder).read().tasks) == ["a", "b", "c"]:
                attempt(folder, at=0)
            else:  # its line is written: what is left to do is to clear away, which the next command does
                with AssistantFolder(folder).locked():
                    pass
        again = content(folder)
        assert again.keys() == whole.keys(), at
        assert [name for name in whole if whole[name] != again[name]] == ["history.jsonl"], at
        shutil.rmtree(folder)


def test_memory_does_not_grow_with_the_number_of_tasks(tmp_path, teach, monkeypatch):
    """Bytes of all live tensors at the end of each phase, every earlier task measured."""
    import torch

    from backends.finetune.engines.torch.engine import TorchEngine

    def live(engine):
        gc.collect()
        tensors = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    monkeypatch.setattr(TorchEngine, "memory_bytes", live)
    for letter in "abcdef":
        found = teach(letter, settings=("epochs=1",))
    sizes = [record.memory_bytes for record in found.learned]
    assert len(set(sizes[1:])) == 1


def test_a_holdout_file_measures_and_is_not_trained_on(tmp_path, teach):
    held_out = write_jsonl(tmp_path / "h.jsonl", [*rows("a")[:4], *rows("a")[:2]])
    found = teach("a", holdout=held_out)
    texts = found.learned[0].texts
    assert (texts["holdout"].texts, texts["train"].texts + texts["decision"].texts) == (4, 16)
    trained_on = write_jsonl(tmp_path / "t.jsonl", rows("a")[4:])
    with pytest.raises(TaskDataError, match=r"t\.jsonl, line .*a text that an earlier task was trained on"):
        teach("b", holdout=trained_on)


def test_an_attempt_that_computed_nothing_binds_nobody(tmp_path, teach, monkeypatch):
    from backends.finetune.engines.torch.engine import TorchEngine

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "step", stopped)
        with pytest.raises(KeyboardInterrupt):
            teach("a", settings=("crma.streams=4",))
    assert list(teach("b").tasks) == ["b"]
    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "step", stopped)
        with pytest.raises(KeyboardInterrupt):
            teach("c")
    assert list(teach("d").tasks) == ["b", "d"]


def test_a_phase_does_not_go_on_with_texts_of_another_spelling(tmp_path, teach, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    teach("a")
    with monkeypatch.context() as patch:
        patch.setattr("backends.finetune.learning.phase.LessonPhase._turn_ratchet", stopped)
        with pytest.raises(KeyboardInterrupt):
            teach("b")
    shouted = [{**row, "response": row["response"].upper()} for row in rows("b")]
    with pytest.raises(RunFolderError, match="'b', with other data"):
        teach("b", data=write_jsonl(tmp_path / "b.jsonl", shouted))


@pytest.mark.parametrize("start", ["last", "distilled"])
def test_nothing_is_forgotten_under_a_phase_that_started_from_a_task(taught, tmp_path, teach, monkeypatch, start):
    """What it starts from, and is held near, would be another task in the middle of it."""
    from backends.finetune.engines.torch.engine import TorchEngine

    shutil.copytree(taught, tmp_path / "assistant")
    step, calls = TorchEngine.step, []

    def stopped(*args):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "step", stopped)
        with pytest.raises(KeyboardInterrupt):
            teach("d", start=start)
    before = content(tmp_path / "assistant")
    for task in "abc":
        with pytest.raises(ConfigError, match="while a phase is interrupted that started from the LoRA"):
            forget(tmp_path / "assistant", task, even_so=True)
    assert content(tmp_path / "assistant") == before
    assert teach("d", start=start).learned[-1].start == "c"


def test_a_task_is_forgotten_while_a_phase_is_interrupted(taught, tmp_path, tiny_model, monkeypatch):
    from backends.finetune.engines.torch.engine import TorchEngine

    shutil.copytree(taught, tmp_path / "assistant")
    data = write_jsonl(tmp_path / "d.jsonl", rows("d"))
    options: dict[str, Any] = {"settings": SETTINGS, "threads": 1, "answers": 0, "quiet": True}
    with monkeypatch.context() as patch:

        def stopped(*_):
            raise KeyboardInterrupt

        patch.setattr(TorchEngine, "scores", stopped)
        patch.setattr("backends.finetune.learning.phase.LessonPhase._begin", _record_without_measure)
        with pytest.raises(KeyboardInterrupt):
            learn(data, tmp_path / "assistant", **options)
    assert (tmp_path / "assistant" / "checkpoint.safetensors").exists()
    forget(tmp_path / "assistant", "b")
    assert not (tmp_path / "assistant" / "task-1").exists()
    assert not (tmp_path / "assistant" / "texts-1.jsonl").exists()
    assert (tmp_path / "assistant" / "checkpoint.safetensors").exists()


def _record_without_measure(phase):
    from backends.finetune.training.phase import new_record

    return new_record(phase.engine)


def test_texts_longer_than_the_model_reads_are_cut_there(tmp_path, tiny_model):
    from backends.finetune.learning.settings import task_protocol

    assert task_protocol("a", 9, [995] * 9, [], None, positions=1000).max_tokens == 1000
    assert task_protocol("a", 9, [70] * 9, [], None, positions=1000).max_tokens == 96
    assert task_protocol("a", 9, [5000] * 9, [], None, positions=8192).max_tokens == 1024


@pytest.mark.parametrize(
    "change",
    [
        lambda last: last["checked"].update(nobody=next(iter(last["checked"].values()))),
        lambda last: last["versions"].update(a=9),
        lambda last: last.update(files={}),
        lambda last: last["files"].update({"crma-x.safetensors": "0" * 64}),
        lambda last: last["files"].update({"../elsewhere": "0" * 64}),
        lambda last: last.update(promise=-1.0),
        lambda last: last.update(config={}),
        lambda last: last["config"].update(crma=[1]),
        lambda last: last["config"]["crma"].update(displacement_budget="wide"),
        lambda last: last.update(texts={}),
        lambda last: last.update(data={}),
        None,
    ],
)
def test_a_history_that_speaks_of_what_is_not_there_or_leaves_something_out_is_refused(
    taught, tmp_path, change, capsys
):
    """With digests that fit: by every command as damaged, and by `crma certify` as a check that fails."""
    from backends.finetune.cli import main
    from backends.finetune.conftest import rewrite_lines

    shutil.copytree(taught, tmp_path / "assistant")
    history = tmp_path / "assistant" / "history.jsonl"
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    last = next(line for line in reversed(lines) if line["kind"] == "learned")
    change(last) if change else lines.pop(0)  # the first says what the folder is
    rewrite_lines(history, [{k: v for k, v in line.items() if k != "sha256"} for line in lines])
    with pytest.raises(RunFolderError, match=r"history\.jsonl, line"):
        AssistantFolder(tmp_path / "assistant").read()
    assert main(["certify", str(tmp_path / "assistant")]) == 1
    assert "history readable" in capsys.readouterr().out


def test_what_somebody_put_beside_the_files_of_a_phase_stays(taught, tmp_path):
    shutil.copytree(taught, tmp_path / "assistant")
    copies = [tmp_path / "assistant" / name for name in ("texts-0.jsonl.bak", "crma-0.bak", "task-9.txt")]
    for path in copies:
        path.write_text("mine")
    (tmp_path / "assistant" / "task-0.bak").mkdir()
    forget(tmp_path / "assistant", "b")
    assert all(path.read_text() == "mine" for path in copies)
    assert (tmp_path / "assistant" / "task-0.bak").exists()

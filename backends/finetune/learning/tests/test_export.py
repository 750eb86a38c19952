"""A task by itself: what it answers is what it answered in the assistant, wherever its folder lies."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from backends.finetune import AdapterRegistry, load_task
from backends.finetune.learning.export import export
from backends.finetune.runs.assistant_folder import AssistantFolder
from reference.errors import ConfigError, ModelError, RunFolderError, StateFileError

IDS = torch.tensor([[70, 71, 72, 73, 74]])


@pytest.fixture
def assistant(teach, tmp_path):
    teach("a")
    teach("b")
    return tmp_path / "assistant"


def test_what_it_answers_is_what_it_answered(assistant, tmp_path, tiny_model):
    registry = AdapterRegistry.from_run(assistant)
    for name in ("a", "b"):
        registry.use(name)
        export(assistant, name, tmp_path / name)
        export(assistant, name, tmp_path / f"{name}-merged", merge=True)
        shutil.move(tmp_path / name, tmp_path / "elsewhere")
        model, tokenizer = load_task(tmp_path / "elsewhere", tiny_model)
        merged, _ = load_task(tmp_path / f"{name}-merged")
        with torch.no_grad():
            expected = registry.model(input_ids=IDS).logits
            assert torch.equal(model(input_ids=IDS).logits, expected)
            assert torch.allclose(merged(input_ids=IDS).logits, expected, atol=1e-5)
            assert not torch.allclose(merged(input_ids=IDS).logits, bare_logits(tiny_model), atol=1e-2)
        assert tokenizer("say 1:")["input_ids"] == registry.tokenizer("say 1:")["input_ids"]
        shutil.rmtree(tmp_path / "elsewhere")


def bare_logits(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)(input_ids=IDS).logits


def test_a_pipeline_takes_it(assistant, tmp_path, tiny_model):
    from transformers import pipeline

    export(assistant, "a", tmp_path / "a")
    model, tokenizer = load_task(tmp_path / "a", tiny_model)
    write = pipeline("text-generation", model=model, tokenizer=tokenizer)
    (answer,) = write("say 3:\n\n", max_new_tokens=8, do_sample=False)
    assert answer["generated_text"].startswith("say 3:")


def test_nothing_in_it_names_a_place_and_the_card_says_what_was_measured(assistant, tmp_path, tiny_model):
    export(assistant, "a", tmp_path / "a")
    for path in (tmp_path / "a").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
        assert str(tiny_model.parent).encode() not in path.read_bytes(), path.name
    taught = AssistantFolder(assistant).read().tasks["a"]
    card = (tmp_path / "a" / "README.md").read_text()
    for measure in (taught.record.bare, taught.record.own, taught.now):
        assert f"| {measure.loss:.4f} | {100 * measure.exact_match:.0f}% |" in card
    assert "base_model: tiny-llama" in card.split("---")[1]


def test_the_lora_alone_warns(assistant, tmp_path, tiny_model):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    export(assistant, "a", tmp_path / "a")
    with pytest.warns(UserWarning, match="answers_only_with_its_CRMA_use_load_task_of_crma"):
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(tmp_path / "a"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_task(tmp_path / "a", tiny_model)


def test_what_cannot_be_exported_or_loaded_is_refused_by_name(assistant, tmp_path, tiny_model, monkeypatch):
    with pytest.raises(ConfigError, match="--task: got 'c'; allowed: a, b"):
        export(assistant, "c", tmp_path / "c")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="a new or empty folder"):
        export(assistant, "a", tmp_path / "full")
    with pytest.raises(RunFolderError, match="--push acme/a"):
        export(assistant, "a", tmp_path / "pushed", push="acme/a")
    assert (tmp_path / "pushed" / "crma.json").exists()
    with pytest.raises(StateFileError, match="nothing from the Hub"):
        load_task("acme/a")
    with pytest.raises(StateFileError, match="no whole task"):
        load_task(tmp_path / "full")
    export(assistant, "a", tmp_path / "merged", merge=True)
    whole = {path.name: "pushed" for path in (tmp_path / "pushed").iterdir()}
    whole |= {"model.safetensors": "merged", "config.json": "merged"}
    assert whole.pop("README.md") == "pushed"  # an owner may write on it
    assert whole.pop("crma.json") == "pushed"
    for name, source in whole.items():
        shutil.copytree(tmp_path / source, tmp_path / name)
        data = bytearray((tmp_path / name / name).read_bytes())
        data[len(data) // 2] ^= 1
        (tmp_path / name / name).write_bytes(data)
        with pytest.raises(StateFileError, match=f"{name} is not the file that was exported"):
            load_task(tmp_path / name, tiny_model)
    shutil.copytree(tiny_model, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(ModelError, match="whose config are others than those of tiny-llama"):
        load_task(tmp_path / "pushed", tmp_path / "other")
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    assert isinstance(export(assistant, "a", tmp_path / "again"), Path)


def test_a_place_that_would_break_something_is_refused(assistant, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for place in (assistant / "task-5", assistant, tmp_path / "link", "."):
        with pytest.raises(ConfigError, match="--to: got"):
            export(assistant, "a", place)
    assert sorted(path.name for path in assistant.glob("task-*")) == ["task-0", "task-1"]


def test_a_name_that_no_text_can_hold_is_exported(teach, tmp_path):
    teach("a", name="half \udcff")
    assert (
        "half &#56575;" in (export(tmp_path / "assistant", "half \udcff", tmp_path / "out") / "README.md").read_text()
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.pop("settings"),
        lambda about: about["settings"].update(epochs=-1),
        lambda about: about.pop("base_model"),
        lambda about: about.update(fingerprint=[]),
        lambda about: about.update(files={}),
        lambda about: about["files"].pop("adapter_model.safetensors"),
    ],
)
def test_a_manifest_that_leaves_something_out_is_refused(assistant, tmp_path, tiny_model, change):
    manifest = export(assistant, "a", tmp_path / "a") / "crma.json"
    about = json.loads(manifest.read_text())
    change(about)
    manifest.write_text(json.dumps(about))
    with pytest.raises(StateFileError, match="no whole task"):
        load_task(tmp_path / "a", tiny_model)

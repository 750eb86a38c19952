"""``crma route`` and ``crma generate``: what they print, and what they refuse."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("wordllama")

from backends.finetune.cli.commands import run
from backends.finetune.inference.base_folder import base_folder
from backends.finetune.inference.embeddings import load_embedding
from backends.finetune.inference.registry import AdapterRegistry
from backends.finetune.inference.router import CentroidRouter
from backends.finetune.inference.router_evaluation import evaluate
from backends.finetune.inference.run_adapters import run_adapters
from backends.finetune.inference.tests.conftest import NAMES
from backends.finetune.tasks.task import fingerprint, parse_task_option
from reference.errors import ConfigError, CRMAError, MissingPackageError, ModelError, RunFolderError, StateFileError

WORDS = {
    "alpha": ("What is the capital of {}?", ["France", "Spain", "Peru", "Japan", "Kenya", "Chile"]),
    "beta": ("How is {} cooked in the oven?", ["bread", "salmon", "pie", "chicken", "pizza", "cake"]),
    "gamma": ("Which pill helps against {} pain?", ["tooth", "back", "head", "knee", "belly", "ear"]),
}


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command, and return what it printed."""

    def printed(*arguments: str | Path) -> str:
        run([str(argument) for argument in arguments])
        return capfd.readouterr().out

    return printed


@pytest.fixture
def worded_run(make_run: Callable[..., Path], tmp_path: Path) -> tuple[Path, list[str]]:
    """A run whose tasks are of everyday words, and the options that name their files."""
    run, options, prints = make_run("modular"), [], {}
    for name, (form, words) in WORDS.items():
        for side, of_side in (("train", words[:4]), ("holdout", words[4:])):
            lines = [json.dumps({"prompt": form.format(word), "response": f" {word}!"}) for word in of_side]
            (tmp_path / f"{name}-{side}.jsonl").write_text("\n".join(lines))
        option = f"{name}={tmp_path}/{name}-train.jsonl:{tmp_path}/{name}-holdout.jsonl"
        options += ["--task", option]
        prints[name] = fingerprint(parse_task_option(option))
    (run / "tasks-7.json").write_text(json.dumps(prints))
    return run, options


def test_generate_says_which_adapter_answers(command: Callable[..., str], modular_run: Path, tmp_path: Path) -> None:
    registry = AdapterRegistry.from_run(modular_run)
    (tmp_path / "prompt.txt").write_text("say 3:\n")
    settings = ("--max-new-tokens", "8", "--threads", "1")
    out = command("generate", modular_run, "--prompt-file", tmp_path / "prompt.txt", "--task", "beta", *settings)
    assert "adapter: beta (seed 7), CRMA on" in out
    assert registry.generate("say 3:", task="beta", max_new_tokens=8) in out
    assert "noise" not in out
    off = command("generate", modular_run, "--prompt", "say 3:", "--task", "beta", "--no-crma", *settings)
    assert "adapter: beta (seed 7), CRMA off" in off
    with registry.without_crma():
        assert registry.generate("say 3:", task="beta", max_new_tokens=8) in off


def test_random_weights_are_called_noise(
    command: Callable[..., str], make_run: Callable[..., Path], tiny_model: Path
) -> None:
    run = make_run("frozen", random_weights=True)
    out = command("generate", run, "--condition", "frozen", "--prompt", "a", "--task", "beta", "--max-new-tokens", "2")
    assert "random weights" in out
    assert "noise" in out
    assert "no CRMA in this condition" in out
    with pytest.raises(ModelError, match="tiny-llama, with weights as they were trained"):
        command("generate", run, "--condition", "frozen", "--prompt", "a", "--task", "beta", "--model", tiny_model)


def test_a_run_on_a_model_of_the_zoo_finds_its_random_weights_again(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "some-random-full-0123"
    monkeypatch.setattr(
        "backends.finetune.inference.base_folder.random_model_folder",
        lambda name, size: folder if (name, size) == ("tinyllama-1.1b", "full") else tmp_path,
    )
    run = run_adapters(make_run("frozen", random_weights=True), condition="frozen")
    protocol = run.protocol.model_copy(update={"model": "tinyllama-1.1b"})
    assert base_folder(run._replace(model=folder.name, protocol=protocol)) == folder


def test_route_fits_stores_and_evaluates(command: Callable[..., str], worded_run: tuple[Path, list[str]]) -> None:
    run, options = worded_run
    out = command("route", run, *options, "--evaluate")
    router = CentroidRouter.load(run / "router.safetensors", load_embedding("wordllama"))
    assert router.tasks == tuple(NAMES)
    assert f"out of domain below {router.threshold:.3f}" in out
    rows = [line.split("│") for line in out.splitlines() if line.startswith("│")]
    found = evaluate(router, {name: [form.format(word) for word in words[4:]] for name, (form, words) in WORDS.items()})
    shown = [[cell.strip().replace("·", "0") for cell in row[1:-1]] for row in rows]
    assert shown == [[name, *map(str, row)] for name, row in zip(NAMES, found.confusion.tolist(), strict=True)]
    assert found.nearest_accuracy == 1
    assert f"accuracy {found.accuracy:.4f}; without the threshold 1.0000" in out
    assert "gamma left out of the fit" in out

    settings = ("--route", "--max-new-tokens", "4", "--threads", "1")
    asked = "How is turkey cooked in the oven?"
    routed = command("generate", run, "--prompt", asked, *settings)
    assert "routed: beta (scores: beta 0." in routed
    assert "adapter: beta (seed 7), CRMA on" in routed
    foreign = command("generate", run, "--prompt", "zzz qqq 17 {}", *settings)
    assert "routed: out of domain" in foreign
    assert "the bare base model answers, CRMA off" in foreign
    assert AdapterRegistry.from_run(run).generate("zzz qqq 17 {}", task=None, max_new_tokens=4) in foreign
    with pytest.raises(StateFileError, match="wordllama"):
        command("generate", run, "--prompt", asked, "--embedding", "minilm", *settings)


def test_route_wants_the_texts_that_were_trained_on(
    command: Callable[..., str], worded_run: tuple[Path, list[str]]
) -> None:
    run, options = worded_run
    with pytest.raises(RunFolderError, match=r"task alpha.*no texts.*--task alpha=TRAIN"):
        command("route", run)
    with pytest.raises(RunFolderError, match="'delta'"):
        command("route", run, "--task", options[1].replace("alpha=", "delta="))
    train = Path(options[1].partition("=")[2].partition(":")[0])
    train.write_text(train.read_text().replace("France", "Italy"))
    with pytest.raises(RunFolderError, match=r"task alpha.*other texts"):
        command("route", run, *options)
    with pytest.raises(RunFolderError, match=r"tasks-3\.json"):
        command("route", run, *options, "--seed", "3")
    assert not (run / "router.safetensors").exists()


def test_refusals(
    command: Callable[..., str], modular_run: Path, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="--prompt-file FILE"):
        command("generate", modular_run, "--task", "beta")
    with pytest.raises(ConfigError, match="absent"):
        command("generate", modular_run, "--task", "beta", "--prompt-file", tmp_path / "absent")
    with pytest.raises(RunFolderError, match="crma route"):
        command("generate", modular_run, "--route", "--prompt", "a")
    with pytest.raises(ConfigError, match=r"'Legal'.*alpha, beta, gamma"):
        command("generate", modular_run, "--task", "Legal", "--prompt", "a")
    with pytest.raises(RunFolderError, match=r"results\.jsonl"):
        command("generate", tmp_path, "--task", "Legal", "--prompt", "a")
    run = make_run("frozen")
    with pytest.raises(ConfigError, match="CRMA"):
        command("generate", run, "--condition", "frozen", "--task", "beta", "--prompt", "a", "--no-crma")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("wordllama", "sentence_transformers"):
        monkeypatch.setitem(sys.modules, module, None)
    for name in ("wordllama", "minilm"):
        with pytest.raises(MissingPackageError, match=r"pip install 'crma\[router\]'"):
            load_embedding(name)
    with pytest.raises(CRMAError, match="wordllama or minilm"):
        load_embedding("word2vec")

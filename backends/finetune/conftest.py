"""A model and tasks so small that a whole run of three conditions takes seconds."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TINY_PROTOCOL = """
name = "tiny"
description = "for tests"
model = "{model}"
tasks = ["unused"]
train = 1
holdout = 1
epochs = 4
batch_size = 3
max_tokens = 48
checkpoint_every = 2
seeds = [0]

[lora]
rank = 2
alpha = 4
learning_rate = 2e-2

[crma]
streams = 2
rank = 2
displacement_budget = {budget}
log_every = 2
gate_logit = 0.0
"""


DRAWN = ("cli", "report", "runs")  # rooms whose tests look at what a run draws


@pytest.fixture(scope="module", autouse=True)
def frozen_garbage() -> Iterator[None]:
    """What was there before a module stays, and the collections that its runs make need not look at it.

    Of these modules alone: the conformance suite counts what is frozen, and that takes longer the more there is.
    """
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder in which any test, of any worker, finds the programs that another one has compiled."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"


@pytest.fixture(scope="module", autouse=True)
def without_pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Pictures take most of a tiny run's time, and are tested with the report."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.parent.name not in DRAWN:
            patch.setattr("backends.finetune.report.page.draw_pictures", lambda results: {})
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with a tokenizer of bytes, as a Hugging Face folder."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("peft")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model") / "tiny-llama"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<end>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        vocab_size=len(vocabulary),
        bos_token_id=None,
        eos_token_id=0,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tasks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Values of ``--task`` for three tasks whose answers contradict each other, so that NAIVE forgets."""
    return write_tasks(tmp_path_factory.mktemp("tasks"), {"alpha": "a", "beta": "b", "gamma": "c"})


def write_tasks(folder: Path, letters: dict[str, str]) -> list[str]:
    """Values of ``--task`` for a task per name, which answers with its letter."""
    options = []
    for name, letter in letters.items():
        for side, numbers in (("train", range(9)), ("holdout", range(20, 24))):
            lines = [
                json.dumps({"prompt": f"say {number}:", "response": f" {letter * 6}{number}"}) for number in numbers
            ]
            (folder / f"{name}-{side}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        options.append(f"{name}={folder}/{name}-train.jsonl:{folder}/{name}-holdout.jsonl")
    return options


Arguments = Callable[..., list[str]]


def tiny_protocol(folder: Path, model: Path, budget: float = 0.05) -> Path:
    """TINY_PROTOCOL as a file."""
    path = folder / f"tiny-{budget}.toml"
    path.write_text(TINY_PROTOCOL.format(model=model, budget=budget), encoding="utf-8")
    return path


def _arguments(folder: Path, model: Path, tasks: list[str]) -> Arguments:
    def arguments(out: Path | str, *more: str, budget: float = 0.05, tasks: list[str] = tasks) -> list[str]:
        of_tasks = [part for task in tasks for part in ("--task", task)]
        protocol = tiny_protocol(folder, model, budget)
        return ["finetune", str(protocol), "--threads", "1", "--out", str(out), *of_tasks, *more]

    return arguments


@pytest.fixture
def finetune_command(tiny_model: Path, tiny_tasks: list[str], tmp_path: Path) -> Arguments:
    """Arguments of ``crma`` for a tiny run into ``out``; further arguments are appended."""
    return _arguments(tmp_path, tiny_model, tiny_tasks)


@pytest.fixture(scope="session")
def tiny_command(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_tasks: list[str]) -> Arguments:
    """The same, for fixtures that run once for several tests."""
    return _arguments(tmp_path_factory.mktemp("protocol"), tiny_model, tiny_tasks)


@pytest.fixture
def crma(capfd: pytest.CaptureFixture[str]) -> Callable[[list[str]], tuple[int, str, str]]:
    """Run the command in this process: (exit code, standard output, standard error)."""
    from backends.finetune.cli import main

    def run(arguments: list[str]) -> tuple[int, str, str]:
        code = main(arguments)
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def crma_process() -> Callable[..., subprocess.Popen[str]]:
    """Start the command in a process of its own, which can be killed."""

    def start(arguments: list[str], program: str = "from backends.finetune.cli import main") -> subprocess.Popen[str]:
        code = f"import sys\n{program}\nsys.exit(main(sys.argv[1:]))"
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def adapters(run: Path) -> dict[str, bytes]:
    """Every adapter file of a run, by its path."""
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*.safetensors"))}


def results_lines(run: Path) -> list[dict[str, Any]]:
    """The lines of ``results.jsonl`` without their digests."""
    lines = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "sha256"} for line in lines]


def rewrite_results(run: Path, lines: list[dict[str, Any]]) -> None:
    """:func:`rewrite_lines` of a run's ``results.jsonl``."""
    rewrite_lines(run / "results.jsonl", lines)


def rewrite_lines(file: Path, lines: list[dict[str, Any]]) -> None:
    """Write a file of records anew, as somebody would who makes every digest fit, without a look at the content."""
    from backends.finetune.runs.results import _sealed

    content = b""
    for line in lines:
        content += _sealed(json.dumps(line).encode(), content)
    file.write_bytes(content)


def measured(run: Path) -> list[dict[str, Any]]:
    """The phases of a run without what a clock or the machine's memory wrote."""
    phases = [line for line in results_lines(run) if line["kind"] == "phase"]
    return [{key: value for key, value in line.items() if key not in ("seconds", "memory_bytes")} for line in phases]

"""``crma evaluate``: what is measured is what answers, and what cannot be measured is one clear error."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("lm_eval")

import datasets
import torch
from PIL import Image

from backends.finetune.conftest import write_tasks
from backends.finetune.inference.registry import AdapterRegistry
from backends.finetune.inference.tests.conftest import NAMES
from backends.finetune.learning.evaluation import evaluate
from backends.finetune.learning.learn import learn
from backends.finetune.protocols.protocol import Protocol
from backends.finetune.runs.evaluation_record import BARE, BOTH, LORA, Evaluation
from reference.errors import ConfigError, CRMAError, MissingPackageError, TaskDataError

CHOICES = ["a", "b", "c", "d", "e"]
CHOICE = """
task: letters
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
PERPLEXITY = """
task: perplexity
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}]
"""
WRITING = """
task: writing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4, do_sample: false}}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def task_file(tmp_path: Path) -> Callable[..., str]:
    """Write a task file with its data, and return its path."""
    data = tmp_path / "data.jsonl"
    rows = [{"question": f"say {n}:", "choices": CHOICES, "answer": n % 5} for n in range(24)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(text: str = CHOICE, name: str = "task.yaml", **values: object) -> str:
        path = tmp_path / name
        path.write_text(text.format(data=data, **values))
        return str(path)

    return write


def test_the_three_differ_and_are_those_of_the_registry(
    modular_run: Path, task_file: Callable[..., str], tmp_path: Path
) -> None:
    names = [task_file(), task_file(PERPLEXITY, "perplexity.yaml"), task_file(WRITING, "writing.yaml")]
    out = tmp_path / "found" / "beta.json"
    found = evaluate(modular_run, "beta", names, batch_size=3, threads=1, out=out)
    assert [row.benchmark for row in found.rows] == ["letters", "perplexity", "writing"]
    assert all(list(row.scores) == [BARE, LORA, BOTH] for row in found.rows)
    accuracy, perplexity, _ = ({name: score.value for name, score in row.scores.items()} for row in found.rows)
    assert len(set(perplexity.values())) == 3, "the switch does not reach the model that lm-eval has"

    registry = AdapterRegistry.from_run(modular_run)
    for name in (BARE, LORA, BOTH):
        registry.use(None if name == BARE else "beta")
        if name == LORA:
            with registry.without_crma():
                expected = _accuracy_and_perplexity(registry)
        else:
            expected = _accuracy_and_perplexity(registry)
        assert (accuracy[name], perplexity[name]) == pytest.approx(expected, rel=1e-4)

    stored = Evaluation.model_validate_json(out.read_text())
    assert stored == found
    assert (found.model, found.seed, found.condition, found.rows[0].samples) == ("tiny-llama", 7, "modular", 24)
    right = accuracy[BARE] or 0
    assert found.rows[0].scores[BARE].stderr == pytest.approx(math.sqrt(right * (1 - right) / 23), rel=1e-6)
    assert found.versions["lm_eval"]
    with Image.open(out.with_suffix(".png")) as picture:
        assert 600 < picture.width < 1300


def _accuracy_and_perplexity(registry: AdapterRegistry) -> tuple[float, float]:
    right, bits, count = 0, 0.0, 0
    end = registry.tokenizer.eos_token_id
    for number in range(24):
        text = registry.tokenizer(f"say {number}:")["input_ids"]
        logits = registry.model(input_ids=torch.tensor([[end, *text]]), use_cache=False).logits[0].log_softmax(-1)
        bits -= logits[range(len(text)), text].sum().item()
        count += len(text)
        answers = [registry.tokenizer(f" {letter}")["input_ids"] for letter in CHOICES]
        scores = []
        for answer in answers:
            ids = torch.tensor([[*text, *answer]])
            rows = registry.model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
            places = range(len(text) - 1, len(text) + len(answer) - 1)
            scores.append(rows[places, answer].sum().item())
        right += scores.index(max(scores)) == number % 5
    return right / 24, math.exp(bits / count)


def test_an_assistant_and_a_limit_by_the_command(
    tiny_model: Path,
    tmp_path: Path,
    task_file: Callable[..., str],
    crma: Callable[[list[str]], tuple[int, str, str]],
) -> None:
    write_tasks(tmp_path, {"alpha": "a"})
    folder = tmp_path / "assistant"
    settings = ["epochs=2", "lora.rank=2", "crma.streams=2", "crma.rank=2"]
    learn(
        tmp_path / "alpha-train.jsonl", folder, model=tiny_model, name="a/b", settings=settings, threads=1, answers=0,
        quiet=True,
    )  # fmt: skip
    command = ["evaluate", str(folder), "--task", "a/b", "--threads", "1", "--with"]
    code, out, err = crma([*command, f"lm-eval:{task_file()}", "--limit", "4"])
    assert code == 0, err
    assert "letters" in out
    file = folder / "evaluation-a_b.json"
    assert str(file) in out
    stored = Evaluation.model_validate_json(file.read_text())
    assert (stored.limit, stored.rows[0].samples, stored.condition) == (4, 4, "modular-ratchet")
    assert file.with_suffix(".png").is_file()
    for with_, said in (("mmlu", "lm-eval:NAME"), ("helm:mmlu", "lm-eval:NAME"), ("lm-eval:", "no benchmark")):
        code, _, err = crma([*command, with_])
        assert code == 2
        assert said in err
        assert "Traceback" not in err


def test_a_condition_without_crma_has_two_columns(make_run: Callable[..., Path], task_file: Callable[..., str]) -> None:
    found = evaluate(make_run("frozen"), "gamma", [task_file()], condition="frozen", threads=1, limit=3)
    assert list(found.rows[0].scores) == [BARE, LORA]


def test_the_chat_template_of_the_folder_is_applied(
    make_run: Callable[..., Path], task_file: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = "{% if m.role == 'assistant' %}[!]{% else %}[{{ m.role }}]{% endif %}{{ m.content }}"
    template = f"{{% for m in messages %}}{turn}{{% endfor %}}{{% if add_generation_prompt %}}[!]{{% endif %}}"
    real = Protocol.model_validate
    monkeypatch.setattr(
        "backends.finetune.inference.run_adapters.Protocol.model_validate",
        lambda config: real(config).model_copy(update={"template": template}),
    )
    seen: list[str] = []
    from lm_eval.models.huggingface import HFLM

    encode = HFLM.tok_encode

    def noted(self: HFLM, string: str, **settings: object) -> list[int]:
        seen.append(string)
        return encode(self, string, **settings)

    monkeypatch.setattr(HFLM, "tok_encode", noted)
    text = CHOICE + "num_fewshot: 2\nfewshot_split: test\n"
    found = evaluate(make_run("modular"), "alpha", [task_file(text)], threads=1, limit=4)
    assert found.chat_template
    prompts = [text for text in seen if "[!]" in text]
    assert all(text.startswith("[user]say ") and text.count("[user]") == 3 for text in prompts)
    third = len(prompts) // 3
    assert len(prompts) == 3 * third > 0
    assert prompts[:third] == prompts[third : 2 * third] == prompts[2 * third :], "each reads what the others read"


def test_a_group_of_lm_eval_is_shown_by_its_own_figures(
    modular_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"question": f"say {n}", "choices": CHOICES[:4], "answer": n % 4, "subject": "x"} for n in range(4)]
    data = datasets.Dataset.from_list(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: {"dev": data, "validation": data, "test": data})
    found = evaluate(modular_run, "alpha", ["mmlu"], threads=1, limit=2, out=tmp_path / "x.json")
    assert [(row.benchmark, row.metric) for row in found.shown] == [("mmlu", "acc")]
    assert len(found.rows) == 1 + 4 + 57
    assert {row.part_of for row in found.rows} >= {None, "mmlu", "mmlu_stem"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task: [", "expected"),
        ("- a list", "no fields"),
        ("task: x\ninclude: nowhere.yaml", "nowhere.yaml"),
        ("task: x\ninclude: task.yaml", "includes itself"),
        ("just: words", "Unknown config shape"),
        ("group: x\ntask: [y]", "one by one"),
        (CHOICE.replace("{data}", "/nowhere.jsonl"), "nowhere.jsonl"),
        (CHOICE.replace("test_split: test", "test_split: other"), "other"),
        (CHOICE.replace("question", "absent"), "absent"),
        (CHOICE.replace("{{{{question}}}}", "{{{{ question.__class__.__mro__ }}}}"), "unsafe"),
        (CHOICE.replace("acc,", "./metric.py,"), "--run-code"),
        (CHOICE + "unsafe_code: true\n", "--run-code"),
        (CHOICE.replace("json", "somebody/something"), "HF_HUB_OFFLINE"),
    ],
)
def test_a_file_that_cannot_be_measured_is_one_error(
    text: str, said: str, modular_run: Path, task_file: Callable[..., str], tmp_path: Path
) -> None:
    path = task_file(text)
    with pytest.raises(TaskDataError) as caught:
        evaluate(modular_run, "alpha", [path], threads=1, limit=2, out=tmp_path / "x.json")
    assert said in str(caught.value)
    assert not (tmp_path / "x.json").exists()


def test_code_is_run_only_where_it_is_asked_for(
    modular_run: Path, task_file: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef ask(doc):\n    return doc['question']\n"
    )
    inner = task_file("doc_to_text: !function mine.ask\n", "inner.yaml")
    outer = task_file(CHOICE.replace('doc_to_text: "{{{{question}}}}"', f"include: {Path(inner).name}"))
    out = tmp_path / "x.json"
    with pytest.raises(TaskDataError, match=r"inner\.yaml.*mine\.ask.*--run-code"):
        evaluate(modular_run, "alpha", [outer], threads=1, limit=2, out=out)
    assert not (tmp_path / "ran").exists()
    with_code = evaluate(modular_run, "alpha", [outer], threads=1, limit=2, run_code=True, out=out)
    assert (tmp_path / "ran").exists()
    without = evaluate(modular_run, "alpha", [task_file()], threads=1, limit=2, out=out)
    assert with_code.rows == without.rows


def test_names_and_numbers_that_do_not_exist(modular_run: Path, task_file: Callable[..., str], tmp_path: Path) -> None:
    path = task_file()
    with pytest.raises(ConfigError, match="gsm8k"):
        evaluate(modular_run, "alpha", ["gsm8kk"], threads=1)
    with pytest.raises(TaskDataError, match=r"benchmark 'gsm8k'.*not on this machine.*openai/gsm8k.*HF_HUB_OFFLINE"):
        evaluate(modular_run, "alpha", ["gsm8k"], threads=1)
    wrong: list[tuple[str, dict]] = [
        ("--task", {"task": "delta"}),
        ("--limit", {"limit": 0}),
        ("--batch-size", {"batch_size": 0}),
        ("--out", {"out": tmp_path / "x.png"}),
        ("letters twice", {"tasks": [path, task_file(name="again.yaml")]}),
    ]
    for said, changed in wrong:
        with pytest.raises(ConfigError, match=said):
            evaluate(modular_run, **({"task": "alpha", "tasks": [path]} | changed))
    assert [name for name in NAMES if list(modular_run.glob(f"evaluation-{name}*"))] == []


def test_a_missing_package_is_named(
    modular_run: Path, task_file: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(MissingPackageError, match=r"crma\[evaluate\]") as caught:
        evaluate(modular_run, "alpha", [task_file()])
    assert isinstance(caught.value, CRMAError)

"""Forged run folders: each breaks a rule that certify checks, even where somebody has made every digest fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from backends.finetune.certify.certification import certify_run
from backends.finetune.certify.promises import CANNOT_KNOW
from backends.finetune.certify.tests.test_certify import edit_record, edit_run_record, failures, write_run
from backends.finetune.conftest import results_lines, rewrite_results

Forge = Callable[[Path], None]
RECORD, RUN, FILES, OURS = (
    "records as training writes them",
    "records agree with the protocol",
    "adapter files whole",
    "files belong to this run",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    conditions = ["modular", "modular-pinned", "modular-unconstrained", "frozen", "frozen-raised", "naive"]
    return write_run(tmp_path_factory.mktemp("forged") / "run", conditions, seeds=(0,))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def record(condition: str, phase: int, change: Callable[[dict[str, Any]], object]) -> Forge:
    return lambda run: edit_record(run, condition, phase, change)


def shortened(kept: slice) -> Callable[[dict[str, Any]], None]:
    """Logged steps left out, in every list of the log."""

    def change(entry: dict[str, Any]) -> None:
        entry["spectral"] = {name: values[kept] for name, values in entry["spectral"].items()}

    return change


def settings(condition: str, **fields: Any) -> Forge:
    """Other settings of PEFT beside the same tensors, in every task alike."""

    def forge(run: Path) -> None:
        for path in run.glob(f"?-{condition}/task-*/adapter_config.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return forge


def panel(change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Forge:
    def forge(run: Path) -> None:
        rewrite_results(run, change(results_lines(run)))

    return forge


def without(kind: str) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    return lambda lines: [line for line in lines if line["kind"] != kind]


def with_panel_of(condition: str, questions: int) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    def change(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        answers = {"with_crma": [True] * questions, "without_crma": [False] * questions}
        return [*lines, {"kind": "panel", "condition": condition, "seed": 0, "tasks": ["A"] * questions, **answers}]

    return change


def text(path: str, old: str, new: str) -> Forge:
    def forge(run: Path) -> None:
        content = (run / path).read_text()
        assert old in content
        (run / path).write_text(content.replace(old, new, 1))

    return forge


def added(path: str, of: str) -> Forge:
    def forge(run: Path) -> None:
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run / of, run / path)

    return forge


FORGERIES: dict[str, tuple[str, Forge]] = {
    "last logged step dropped": (RECORD, record("modular", 1, shortened(slice(0, 1)))),
    "first logged step dropped": (RECORD, record("modular-pinned", 2, shortened(slice(1, 2)))),
    "log of the free mixing dropped": (RECORD, record("modular-unconstrained", 1, lambda r: r.update(spectral=None))),
    "norm below 1": (RECORD, record("modular", 2, lambda r: r["spectral"].update(norm_max=[0.5, 0.5]))),
    "smallest above largest": (RECORD, record("modular", 2, lambda r: r["spectral"].update(norm_min=[1.0, 1.1]))),
    "displacement of the anchor": (
        RECORD,
        record("modular", 0, lambda r: r["spectral"].update(displacement_max=[0.0, 0.0])),
    ),
    "spectrum without CRMA": (RECORD, lambda run: _give_spectrum(run)),
    "gradient norms shortened": (RECORD, record("frozen", 0, lambda r: r["gradient_norms"]["lora"].pop())),
    "gradient norm below 0": (RECORD, record("naive", 0, lambda r: r["gradient_norms"].update(lora=[-1.0] * 4))),
    "negative seconds": (RECORD, record("naive", 0, lambda r: r.update(seconds=-1.0))),
    "fewer tokens than steps": (RECORD, record("frozen", 1, lambda r: r.update(tokens=1))),
    "more parameters": (RECORD, record("modular", 1, lambda r: r["parameters"].update(lora=13))),
    "more parameters in every phase": (RECORD, lambda run: _more_parameters(run)),
    "loss of a task to come": (RECORD, record("frozen", 0, lambda r: r["holdout"].update(C=1.0))),
    "exact match without canaries": (RECORD, record("frozen", 1, lambda r: r.update(exact_match={"A": 1.0}))),
    "loss before a phase that was not asked for": (RECORD, record("frozen", 1, lambda r: r.update(before=1.5))),
    "steps of one condition dropped": (
        RUN,
        record("frozen", 1, lambda r: (r["losses"].pop(), r["gradient_norms"]["lora"].pop())),
    ),
    "tokens of one condition raised": (RUN, record("modular", 1, lambda r: r.update(tokens=10))),
    "panel dropped": (RUN, panel(without("panel"))),
    "panel of one task": (RUN, panel(with_panel_of("modular", 6))),
    "panel with fewer questions": (RUN, panel(with_panel_of("modular", 3))),
    "panel of a condition without CRMA": (RUN, panel(with_panel_of("frozen", 6))),
    "configuration that is none": (RUN, lambda run: edit_run_record(run, lambda r: r.update(config={}))),
    "other scale": (FILES, settings("frozen", lora_alpha=8)),
    "other rank": (FILES, settings("frozen", r=4, lora_alpha=8)),
    "other scale of the raised rank": (FILES, settings("frozen-raised", lora_alpha=6)),
    "another variant of LoRA": (FILES, settings("modular", use_rslora=True)),
    "a scale per layer": (FILES, settings("modular", alpha_pattern={"x": 32})),
    "no LoRA": (FILES, settings("modular", peft_type="LOHA")),
    "a key twice in the settings": (FILES, text("0-frozen/task-1/adapter_config.json", "{", '{"r": 2, ')),
    "a key twice in run.json": (OURS, text("run.json", "{", '{"backend": "torch-cuda", ')),
    "a state of a phase that never was": (OURS, added("0-modular/crma-7.safetensors", "0-modular/crma-2.safetensors")),
    "a state of a condition without CRMA": (OURS, added("0-frozen/notes.txt", "run.json")),
    "an adapter of a phase that never was": (
        OURS,
        added("0-frozen/task-3/adapter_config.json", "0-frozen/task-2/adapter_config.json"),
    ),
    "a checkpoint of a finished condition": (
        OURS,
        added("0-modular/checkpoint.safetensors", "0-modular/crma-2.safetensors"),
    ),
}


def _more_parameters(run: Path) -> None:
    for phase in range(3):
        edit_record(run, "modular", phase, lambda r: r["parameters"].update(crma=99))


def _give_spectrum(run: Path) -> None:
    log = {"steps": [2, 4], "displacement_max": [None] * 2}
    log |= {name: [1.0] * 2 for name in ("norm_max", "adapter_max", "adapter_min")}
    edit_record(run, "frozen", 0, lambda r: r.update(spectral=log))


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_breaks_a_rule(run: Path, name: str) -> None:
    check, forge = FORGERIES[name]
    forge(run)
    assert check in {broken for _, _, broken in failures(run)}


CHANGES: dict[str, Callable[[Path], object]] = {
    "two tasks swapped": lambda run: swap(run / "0-frozen/task-0", run / "0-frozen/task-1"),
    "two conditions swapped": lambda run: swap(run / "0-frozen/task-0", run / "0-naive/task-0"),
    "two states swapped": lambda run: swap(run / "0-modular/crma-1.safetensors", run / "0-modular/crma-2.safetensors"),
    "free mixing swapped": lambda run: swap(
        run / "0-modular-unconstrained/mixing-0.safetensors", run / "0-modular-unconstrained/mixing-1.safetensors"
    ),
    "one bit of a LoRA": lambda run: flip(run / "0-modular/task-1/adapter_model.safetensors"),
    "one bit of the settings": lambda run: flip(run / "0-modular/task-1/adapter_config.json"),
    "one bit of run.json": lambda run: flip(run / "run.json"),
    "another fingerprint of a task": text("tasks-0.json", '"A": "0"', '"A": "1"'),
    "an answer of the panel turned": text("results.jsonl", '"with_crma": [true', '"with_crma": [false'),
    "a loss lowered": text("results.jsonl", '"holdout": {"A": 1', '"holdout": {"A": 0'),
    "a record dropped": lambda run: without_line(run, 3),
    "two records swapped": lambda run: without_line(run, 3, again=True),
    "random weights denied": text("results.jsonl", '"random_weights": false', '"random_weights": true '),
    "a key twice in a record": text("results.jsonl", '"seconds": 1.0', '"seconds": 0.5, "seconds": 1.0'),
}


def swap(one: Path, other: Path) -> None:
    held = one.with_name("held")
    one.rename(held)
    other.rename(one)
    held.rename(other)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def without_line(run: Path, number: int, again: bool = False) -> None:
    lines = (run / "results.jsonl").read_text().splitlines()
    line = lines.pop(number)
    if again:
        lines.insert(number + 1, line)
    (run / "results.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_breaks_a_digest(run: Path, name: str) -> None:
    assert failures(run, fit=False) == {}
    CHANGES[name](run)
    broken = {check for _, _, check in failures(run, fit=False)}
    assert broken & {"files as recorded", "files belong to this run", "results readable"}


def test_what_no_check_can_know_is_said_last(run: Path, crma: Callable[[list[str]], tuple[int, str, str]]) -> None:
    code, out, _ = crma(["certify", str(run)])
    assert code == 0
    assert " ".join(out.split()).endswith(" ".join(CANNOT_KNOW))
    assert certify_run(run).as_json()["cannot_be_known"] == list(CANNOT_KNOW)

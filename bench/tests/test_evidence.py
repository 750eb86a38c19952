"""Every figure of the READMEs' tables of results is what a stored file gives, and one file gives them all."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft", reason="pip install 'crma[bench]'")

import reference
from backends.finetune.methods.conditions import SECTIONS
from backends.finetune.methods.method import section_name
from backends.finetune.protocols.protocol import Protocol, load_protocol
from bench import evidence, program

if not (evidence.ROOT / "README.md").is_file():
    pytest.skip("the READMEs lie in a checkout", allow_module_level=True)

FILES = ("comparison.json", "baselines_tried.json", "quickstart.json", "quickstart_tried.json", "quickstart-jax.json")


def test_tables_and_pictures_show_what_is_stored() -> None:
    assert evidence.stale() == []


@pytest.mark.parametrize("name", evidence.TABLES)
def test_a_figure_that_differs_is_noticed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, recomputed = evidence.TABLES[name]
    rows = cache(lambda: [*recomputed()])
    text, table = path.read_text(encoding="utf-8"), program.markdown(rows())
    place = text.index(table) + max(table.rindex(digit) for digit in "0123456789" if digit in table)
    wrong = text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]
    (tmp_path / path.name).write_text(wrong, encoding="utf-8")
    monkeypatch.setattr(evidence, "ROOT", tmp_path)
    monkeypatch.setitem(evidence.TABLES, name, (tmp_path / path.name, rows))
    monkeypatch.setattr(evidence, "TABLES", {name: evidence.TABLES[name]})
    monkeypatch.setattr(evidence, "PICTURES", {})
    assert evidence.stale() == [f"table {name} of {path.name}"]


def test_a_picture_of_other_results_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.json"
    other.write_text(evidence.COMPARISON.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    monkeypatch.setattr(
        evidence, "PICTURES", {name: (other, source) for name, (_, source) in evidence.PICTURES.items()}
    )
    assert evidence.stale() == [f"picture {name}" for name in evidence.PICTURES]


@pytest.mark.parametrize("name", FILES)
def test_stored_figures_are_those_of_their_holdout_matrices(name: str) -> None:
    """The advantage is over FROZEN of the same seed and setting, which is in the file or in the comparison."""
    frozen: dict[tuple[Any, ...], float] = {}
    for entry in [*program.read_stored(evidence.COMPARISON), *program.read_stored(evidence.RESULTS / name)]:
        results, config = evidence.stored_results(entry), entry["config"]
        setting = (config["lora"]["learning_rate"], config["train"], config["epochs"])
        for row in sorted(entry["rows"], key=lambda row: row["condition"] != "frozen"):
            metrics = results.metrics(row["condition"], row["seed"])
            assert metrics is not None
            if row["condition"] == "frozen":
                frozen[*setting, row["seed"]] = metrics.final_holdout
            assert row["drift"] == pytest.approx(metrics.drift, abs=1e-12)
            assert row["final_holdout"] == pytest.approx(metrics.final_holdout, abs=1e-12)
            gain = reference.advantage(frozen[*setting, row["seed"]], metrics.final_holdout)
            assert row["advantage"] == pytest.approx(gain, abs=1e-12)


def test_the_command_that_is_named_repeats_the_stored_comparison() -> None:
    """Every setting that decides a result is the protocol's of today, so the command gives the stored file again."""
    (entry,) = program.read_stored(evidence.COMPARISON)
    today = json.loads(load_protocol("comparison").model_dump_json())
    of_others = {section_name(name) for name in SECTIONS if name not in today["conditions"]}  # methods that do not run
    decides = {key: value for key, value in today.items() if key not in {"description", *of_others}}
    stored = json.loads(Protocol.model_validate(entry["config"]).model_dump_json())  # with the defaults of later fields
    assert {key: stored[key] for key in decides} == decides
    assert {(row["condition"], row["seed"]) for row in entry["rows"]} == {
        (condition, seed) for condition in today["conditions"] for seed in today["seeds"]
    }

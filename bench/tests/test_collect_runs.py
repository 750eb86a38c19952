"""What is stored of runs gives their figures again, joined or not."""

import json

import pytest

pytest.importorskip("peft", reason="pip install 'crma[bench]'")

from backends.finetune.report.intervals import interval
from backends.finetune.report.rows import values_of
from backends.finetune.report.tests.test_intervals import results_of
from bench import collect_runs, evidence, forgetting, program
from reference.errors import ConfigError


def entry(results):
    found = collect_runs.collect(results)
    return collect_runs.compared(found, found)


def stored(path, *entries):
    program.store(path, list(entries))
    return [evidence.stored_results(each) for each in program.read_stored(path)]


def run(seed, **factors):
    """Results of one seed, with what a run record holds."""
    found = results_of(**factors)
    phases = {(key[0], seed, key[2]): each.model_copy(update={"seed": seed}) for key, each in found.phases.items()}
    config = {"tasks": found.tasks, "crma": {}, "seeds": [seed], "conditions": list(found.conditions)}
    versions = {"torch": "1", "commit": str(seed)}
    record = found.run.model_copy(update={"config": config, "seeds": [seed], "versions": versions})
    return type(found)(record, found.conditions, (seed,), phases)


FACTORS = {"naive": (1.5, 0.9), "frozen": (1.0, 1.0), "modular": (0.98, 0.97), "modular_inherit": (0.97, 0.95)}


def test_figures_and_intervals_are_those_of_the_runs(tmp_path):
    given = run(5, **FACTORS)
    (again,) = stored(tmp_path / "one.json", entry(given))
    for name in given.with_snapshots:
        assert values_of(again, name, [5]) == values_of(given, name, [5])
        for figure in ("drift", "advantage", "later"):
            assert interval(again, figure, name, [5]) == pytest.approx(interval(given, figure, name, [5]), abs=1e-3)


def test_folders_of_other_seeds_become_one_entry(tmp_path):
    one, two = run(5, **FACTORS), run(6, **FACTORS | {"modular": (0.9, 0.9)})
    joined = collect_runs.joined([collect_runs.collect(one), collect_runs.collect(two)])
    (again,) = stored(tmp_path / "joined.json", collect_runs.compared(joined, joined))
    assert again.seeds == (5, 6)
    assert json.loads((tmp_path / "joined.json").read_text())[0]["versions"]["commit"] == "5, 6"
    for seed, alone in ((5, one), (6, two)):
        assert again.metrics("modular", seed).final_holdout == alone.metrics("modular", seed).final_holdout
    with_crma, *_ = list(forgetting.shares(again))[1:]
    assert with_crma[:3] == ["MODULAR", "FROZEN", "2"]
    two.run.versions["torch"] = "2"
    with pytest.raises(ConfigError, match="--join: got folders that differ in torch"):
        collect_runs.joined([collect_runs.collect(one), collect_runs.collect(two)])


def test_settings_of_a_method_are_those_of_the_entry_that_has_it(tmp_path):
    ours, theirs = (collect_runs.collect(run(5, **factors)) for factors in (FACTORS, {"ewc": (1.2, 1.0)}))
    ours["config"] |= {"ewc": {"strength": 1.0}, "description": "as it was"}
    theirs["config"] |= {"ewc": {"strength": 300.0}, "crma": {"data_budget": None}, "packing": None}
    for order in ([ours, theirs], [theirs, ours]):
        joined = collect_runs.joined(order)
        assert joined["config"]["ewc"] == {"strength": 300.0}
        assert joined["config"]["conditions"] == ["naive", "frozen", "modular", "modular-inherit", "ewc"]
    other = collect_runs.collect(run(6, ewc=(1.2, 1.0)))
    other["config"]["ewc"] = {"strength": 1.0}
    with pytest.raises(ConfigError, match=r"differ in config\.ewc; allowed"):
        collect_runs.joined([ours, theirs, other])
    other["config"] |= {"ewc": {"strength": 300.0}, "packing": True}
    for order in ([ours, theirs, other], [other, theirs, ours]):  # also where the first alone has it
        with pytest.raises(ConfigError, match=r"differ in config\.packing; allowed"):
            collect_runs.joined(order)


def test_rows_of_numbers_stay_on_a_line_and_words_as_they_are(tmp_path):
    given = {"losses": [1.5, -2e-7, 3], "none": [], "words": ["a [1,\n 2] b", "[ 1 ]"], "deep": [[1, 2], [3]]}
    program.store(tmp_path / "a.json", given)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == given
    assert '"losses": [1.5, -2e-07, 3]' in text

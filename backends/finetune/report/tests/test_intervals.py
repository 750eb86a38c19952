"""Intervals, snapshots and the noise floor of a run whose losses are written by hand. Clause: CL-13."""

import pytest

from backends.finetune.report.intervals import interval, noise_floor
from backends.finetune.report.rows import summary_rows
from backends.finetune.report.summary import caption_of
from backends.finetune.runs.records import PhaseRecord, RunRecord
from backends.finetune.runs.results import SNAPSHOTS, RunResults

pytestmark = pytest.mark.clause("CL-13")

TASKS = ["first", "second"]
TOKENS = [2, 2, 4]
OWN = {"first": [2.0, 4.0, 6.0], "second": [1.0, 2.0, 5.0]}  # summed over the tokens: 12 and 8 nats of 8 tokens


def results_of(**factors):
    """Per condition: a factor of the first task's losses after the last phase, and of the second one's."""
    phases = {}
    for name, (lost, second) in factors.items():
        condition = name.replace("_", "-")
        after = {"first": [lost * loss for loss in OWN["first"]], "second": [second * loss for loss in OWN["second"]]}
        for phase, losses in enumerate(({"first": OWN["first"]}, after)):
            phases[condition, 0, phase] = PhaseRecord(
                condition=condition,
                seed=0,
                phase=phase,
                task=TASKS[phase],
                losses=[1.0],
                holdout={task: sum(values) / sum(TOKENS) for task, values in losses.items()},
                text_losses=losses,
                answer_tokens=TOKENS,
                seconds=1.0,
                tokens=1,
            )
    names = tuple(name.replace("_", "-") for name in factors)
    run = RunRecord(protocol="p", model="m", backend="b", tasks=TASKS, conditions=list(names), seeds=[0])
    return RunResults(run, names, (0,), phases)


def test_drift_of_texts_that_all_lose_the_same_has_an_interval_without_width():
    results = results_of(naive=(1.5, 1.0), frozen=(1.0, 1.0))
    assert interval(results, "drift", "naive", [0]) == pytest.approx((50.0, 50.0, 50.0))
    assert interval(results, "drift", "frozen", [0]) == (0.0, 0.0, 0.0)


def test_snapshots_are_the_diagonal_and_do_not_drift():
    results = results_of(naive=(1.5, 0.9), frozen=(1.0, 1.0))
    assert results.with_snapshots == ["naive", "naive" + SNAPSHOTS, "frozen"]
    assert (metrics := results.metrics("naive" + SNAPSHOTS, 0)) is not None
    assert (metrics.drift, metrics.final_holdout) == (0.0, pytest.approx((12 + 0.9 * 8) / 8 / 2))
    assert interval(results, "later", "naive" + SNAPSHOTS, [0]) == pytest.approx((10.0, 10.0, 10.0))
    for phase, recalled in ((0, {"first": 0.5}), (1, {"first": 0.0, "second": 1.0})):
        results.phases["naive", 0, phase].exact_match.update(recalled)
    assert results.exact_match_transfer("naive", 0) == -0.5
    assert results.exact_match_transfer("naive" + SNAPSHOTS, 0) == 0.0
    assert results_of(naive=(1.5, 0.9), frozen_inherit=(1.0, 1.0)).with_snapshots == ["naive", "frozen-inherit"]


def test_the_first_task_is_reported_apart():
    results = results_of(frozen=(1.0, 1.0), modular=(0.8, 0.9))
    found = interval(results, "advantage", "modular", [0])
    assert found is not None
    assert found.estimate == pytest.approx(100 * (0.2 * 12 + 0.1 * 8) / 20)
    assert found.low < found.estimate < found.high
    assert results.later_advantage("modular", 0) == pytest.approx(0.1)
    (row,) = (row for row in summary_rows(results) if row.condition == "modular" and not row.source)
    assert row.later == "+10.00\n[+10.00, +10.00]"


def test_an_advantage_that_another_draw_has_too_is_marked():
    draws = {"frozen_draw_2": (1.0, 0.98), "frozen_draw_3": (1.0, 1.05)}  # 0.8% better, and 2% worse
    results = results_of(frozen=(1.0, 1.0), modular=(1.0, 0.96), modular_pinned=(0.8, 0.9), **draws)
    assert noise_floor(results, [0]) == pytest.approx(2.0)
    rows = {row.condition: row.advantage for row in summary_rows(results) if not row.source}
    assert "≈" in rows["modular"]
    assert "≈" not in rows["modular-pinned"]
    assert "up to 2.00%" in caption_of(results)
    assert "≈" not in caption_of(results_of(frozen=(1.0, 1.0), modular=(1.0, 0.96)))


def test_results_without_losses_of_texts_have_no_interval():
    results = results_of(frozen=(1.0, 1.0), modular=(0.8, 0.9))
    results.phases["modular", 0, 1].text_losses.clear()
    assert interval(results, "advantage", "modular", [0]) is None
    (row,) = (row for row in summary_rows(results) if row.condition == "modular" and not row.source)
    assert "[" not in row.advantage


def test_no_interval_is_over_fewer_seeds_than_the_mean_beside_it():
    results = results_of(frozen=(1.0, 1.0), modular=(0.8, 0.9))
    further = {
        (name, 1, phase): each.model_copy(update={"seed": 1}) for (name, _, phase), each in results.phases.items()
    }
    both = RunResults(results.run, results.conditions, (0, 1), results.phases | further)
    assert interval(both, "advantage", "modular", [0, 1]) is not None
    both.phases["modular", 1, 1] = both.phases["modular", 1, 1].model_copy(update={"text_losses": {}})
    assert interval(both, "advantage", "modular", [0, 1]) is None
    del both.phases["modular", 1, 1]  # not finished: neither mean nor interval has it
    assert interval(both, "advantage", "modular", [0, 1]) is not None

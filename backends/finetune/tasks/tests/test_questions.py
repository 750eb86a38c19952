"""The question panel: fair options, one rule of grading, and the paper's Table 8 statistics."""

import math

import pytest

from backends.finetune.report.rows import panel_rows
from backends.finetune.runs.results import append_record, read_results
from backends.finetune.tasks.fictional import FICTIONAL, load_fictional
from backends.finetune.tasks.questions import NEAREST, draw_panel, grade
from backends.finetune.tasks.task import Example, Task
from reference.errors import ConfigError, NonFiniteError, ShapeError, TaskDataError


def task_of(*holdout, name="law"):
    return Task(name, (), tuple(Example(*pair) for pair in holdout))


@pytest.fixture(scope="module")
def tasks():
    return [load_fictional(name, train=8, holdout=60, canaries=1, seed=4) for name in FICTIONAL]


def test_a_question_offers_the_true_response_among_different_ones_of_its_task(tasks):
    panel = draw_panel(tasks, 20, seed=1)
    assert [question.task for question in panel] == [task.name for task in tasks for _ in range(20)]
    assert len({(question.task, question.prompt) for question in panel}) == 60
    holdout = {task.name: set(task.holdout) for task in tasks}
    for question in panel:
        assert len(question.options) == len(set(question.options)) == 4
        assert Example(question.prompt, question.options[question.answer]) in holdout[question.task]
        assert set(question.options) <= {example.response for example in holdout[question.task]}
        assert question.examples[question.answer] == Example(question.prompt, question.options[question.answer])


def test_wrong_options_are_about_as_long_as_the_right_one(tasks):
    for question in draw_panel(tasks, 60, seed=1):
        right = question.options[question.answer]
        holdout = next(task.holdout for task in tasks if task.name == question.task)
        others = {example.response for example in holdout if example.response != right}
        within = sorted(abs(len(response) - len(right)) for response in others)[NEAREST * 3 - 1]
        assert all(abs(len(option) - len(right)) <= within for option in question.options)


def test_the_right_option_stands_at_every_place_about_equally_often(tasks):
    answers = [question.answer for seed in range(4) for question in draw_panel(tasks, 50, seed=seed)]
    assert all(0.18 < answers.count(place) / len(answers) < 0.32 for place in range(4))  # 600 draws: 4 SD are 0.07


def test_a_seed_draws_the_same_panel_again_and_another_seed_another(tasks):
    assert draw_panel(tasks, 20, seed=3) == draw_panel(tasks, 20, seed=3)
    assert draw_panel(tasks, 20, seed=3) != draw_panel(tasks, 20, seed=4)


def test_a_larger_panel_starts_with_the_smaller_one(tasks):
    assert draw_panel(tasks[:1], 20)[:7] == draw_panel(tasks[:1], 7)


def test_a_panel_of_two_options_and_of_all_there_are():
    task = task_of(("a?", " x"), ("b?", " yy"), ("c?", " zzz"))
    assert {len(question.options) for question in draw_panel([task], 3, options=2)} == {2}
    assert all(set(question.options) == {" x", " yy", " zzz"} for question in draw_panel([task], 3, options=3))


def test_a_response_that_may_be_right_as_well_is_no_wrong_option():
    task = task_of(("a?", " x"), ("a? ", " also x"), ("b?", " y"), ("c?", " z"), ("d?", "  x "))
    (question,) = (question for question in draw_panel([task], 5, options=3) if question.prompt == "a?")
    assert set(question.options) == {" x", " y", " z"}


def test_too_few_examples_or_too_few_different_responses_are_refused_with_the_task():
    task = task_of(("a?", " x"), ("b?", " y"), ("c?", " y"), ("d?", " y"))
    with pytest.raises(TaskDataError, match="holdout examples of law: got 4; allowed: at least 5"):
        draw_panel([task], 5, options=2)
    with pytest.raises(TaskDataError, match="holdout examples of law: got 1 responses"):
        draw_panel([task], 4)


@pytest.mark.parametrize(("per_task", "options", "field"), [(0, 4, "per_task"), (1, 1, "options")])
def test_a_panel_without_questions_or_choice_is_refused(tasks, per_task, options, field):
    with pytest.raises(ConfigError) as caught:
        draw_panel(tasks, per_task, options)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [
        ([2.0, 1.0, 3.0, 4.0], 1),
        ([0.5, 0.6], 0),
        ([3.0, 2.0, 1.0, math.nextafter(1.0, 0)], 3),
        ([1.0, 2.0, 1.0, 3.0], None),
        ([2.0, 2.0, 2.0, 2.0], None),
        ([2.0, 2.0, 1.0, 3.0], 2),  # a tie of others than the lowest counts for nothing
        ([-1.0, 0.0], 0),
    ],
)
def test_the_lowest_loss_is_chosen_and_a_tie_chooses_nothing(losses, chosen):
    assert grade(losses) == chosen


@pytest.mark.parametrize(
    ("losses", "error"),
    [
        ([1.0, math.nan, 2.0], NonFiniteError),
        ([1.0, math.inf, 2.0], NonFiniteError),
        ([1.0, -math.inf, 2.0], NonFiniteError),
        ([], ShapeError),
    ],
)
def test_no_losses_and_those_that_are_no_numbers_are_not_graded(losses, error):
    with pytest.raises(error, match="losses"):
        grade(losses)


def panel_row(folder, both, only_with, only_without, neither):
    """The row of a run with one panel, of so many questions of each kind."""
    run = {"kind": "run", "protocol": "p", "model": "m", "backend": "reference", "tasks": ["A"]}
    pairs = [(True, True)] * both + [(True, False)] * only_with + [(False, True)] * only_without
    pairs += [(False, False)] * neither
    panel = {"kind": "panel", "condition": "modular", "seed": 3, "tasks": ["A"] * len(pairs)}
    append_record(folder / "results.jsonl", run | {"conditions": ["frozen", "modular"], "seeds": [3]})
    right, bypassed = zip(*pairs, strict=True)
    append_record(folder / "results.jsonl", panel | {"with_crma": right, "without_crma": bypassed})
    (row,) = panel_rows(read_results(folder))
    return row


@pytest.mark.clause("CL-9")
def test_a_row_counts_the_two_kinds_of_difference_apart(tmp_path):
    row = panel_row(tmp_path, 37, 61, 1, 1)
    assert (row.condition, row.seed, row.questions) == ("modular", 3, 100)
    assert (row.with_crma, row.without_crma, row.gained, row.lost) == (98, 38, 61, 1)
    assert row.p == pytest.approx(2 * (1 + 62) / 2**62, rel=1e-12)  # 62 pairs differ, 1 of them the other way


@pytest.mark.clause("CL-9")
def test_the_intervals_are_those_of_the_score_test(tmp_path):
    row = panel_row(tmp_path, 37, 61, 1, 1)
    for right, (low, high) in ((98, row.interval(row.with_crma)), (38, row.interval(row.without_crma))):
        for bound in (low, high):  # where |f - bound| is 1.96 standard errors at the bound
            assert abs(right / 100 - bound) / math.sqrt(bound * (1 - bound) / 100) == pytest.approx(1.959964, rel=1e-5)
        assert low < right / 100 < high


def test_equal_answers_say_nothing(tmp_path):
    row = panel_row(tmp_path, 4, 0, 0, 6)
    assert (row.p, row.with_crma, row.without_crma) == (1.0, 4, 4)

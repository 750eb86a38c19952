"""The report: right numbers, whole pictures, and a page that fetches and runs nothing, from any state of a run."""

import base64
import html.parser
import io
import itertools
import json
import math
import statistics
from dataclasses import replace
from typing import Any

import matplotlib.style
import numpy as np
import pytest
from matplotlib.text import Annotation, Text
from PIL import Image
from rich.cells import cell_len
from rich.console import Console

import reference
from backends.finetune.methods.conditions import KNOWN
from backends.finetune.report.labels import RANDOM_WEIGHTS, budget_of, label, percent, readable
from backends.finetune.report.page import report_html, write_report
from backends.finetune.report.pictures import PICTURES, draw_pictures
from backends.finetune.report.pictures.bars import drift_bars
from backends.finetune.report.pictures.certificates import displacement_over_steps
from backends.finetune.report.pictures.fonts import families_for
from backends.finetune.report.pictures.overview import overview
from backends.finetune.report.pictures.style import STYLE, budget_in, mark_of, task_labels
from backends.finetune.report.pictures.trade_off import budget_trade_off
from backends.finetune.report.rows import paired_rows, panel_rows, seed_rows, summary_rows
from backends.finetune.report.summary import orders_table, summary_table
from backends.finetune.runs.results import append_record, read_results
from backends.finetune.tasks.domains import DOMAINS
from backends.finetune.tasks.fictional import FICTIONAL
from reference.errors import DiskSpaceError, RunFolderError

THREE = ["Medical", "Legal", "Science"]
FIVE = list(DOMAINS)
INVENTED = list(FICTIONAL)
ODD = ["<script>alert(1)</script>", "a$b_{c}$ \\frac", "医学 🧬", "x\ny", "[red]bold[/red] \ud800"]
ALL = ("naive", "frozen", "modular")
STILL = ("frozen", "frozen-raised", "modular-still", "modular-pinned")
PANEL = {"with_crma": 0.9, "without_crma": 0.5, "without_lora": 0.4, "without_both": 0.3}
PNG = b"\x89PNG\r\n\x1a\n"


SEEDS = itertools.count()  # other numbers for each run that is written


def write_results(
    folder,
    tasks=THREE,
    conditions=ALL,
    seeds=(0,),
    phases=None,
    budget=None,
    model="SmolLM2",
    protocol="quickstart",
    random_weights=False,
    base=False,
    canaries=False,
    panel=False,
    smallest=True,
):
    """Results with random losses; the first ``phases`` phases only, where that is given."""
    rng = np.random.default_rng(next(SEEDS))
    file = folder / "results.jsonl"
    run = {"kind": "run", "protocol": protocol, "model": model, "backend": "torch-cpu", "tasks": list(tasks)}
    run["random_weights"] = random_weights
    run |= {"conditions": list(conditions), "seeds": list(seeds), "displacement_budget": budget}
    run |= {"versions": {"crma": "0.1.0"}, "config": {"model": model, "epochs": 3}}
    append_record(file, run)
    for seed in seeds if base else ():
        bare = {"kind": "base", "seed": seed, "holdout": {task: rng.uniform(2, 4) for task in tasks}}
        append_record(file, bare | {"exact_match": dict.fromkeys(tasks, 0.0) if canaries else {}})
    order = [(c, s, p) for s in seeds for c in conditions for p in range(len(tasks))]
    holdout: dict[tuple[str, int], dict[str, float]] = {}
    for condition, seed, phase in order[:phases]:
        seen = holdout.setdefault((condition, seed), {})
        if condition not in STILL:
            seen.update({task: loss * rng.uniform(0.97, 1.1) for task, loss in seen.items()})
        seen[tasks[phase]] = rng.uniform(1, 3)
        steps = [0, 5, 10]
        spectral: dict[str, Any] = {
            "steps": steps,
            "norm_max": [1 + 1e-7] * 3,
            "adapter_max": [1.0] * 3,
            "adapter_min": [0.9] * 3,
        }
        spectral["displacement_max"] = [0.01 * phase + 0.001 * s if phase else None for s in steps]
        if condition == "modular-still":
            spectral["displacement_max"] = [1e-17 * s if phase else None for s in steps]
        if smallest:  # an earlier version logged the largest alone
            least = [value and value / 3 for value in spectral["displacement_max"]]
            spectral |= {"norm_min": [1 - 1e-8] * 3, "displacement_min": least}
            if "@data" in condition:
                spectral["data_displacement_max"] = [value and value / 10 for value in spectral["displacement_max"]]
        record = {"kind": "phase", "condition": condition, "seed": seed, "phase": phase, "task": tasks[phase]}
        record |= {"losses": rng.uniform(1, 4, 10), "holdout": seen, "seconds": 2.0, "tokens": 5000}
        record |= {"parameters": {"lora": 2442240} | ({"crma": 276480} if "modular" in condition else {})}
        record |= {"gradient_norms": {"lora": rng.uniform(0.5, 2, 10)}, "before": rng.uniform(2, 4)}
        if canaries:
            record["exact_match"] = {task: rng.uniform(0, 1) for task in seen}
        append_record(file, record | {"spectral": spectral if condition.startswith("modular") else None})
        if panel and condition == "modular" and phase == len(tasks) - 1:
            answers = {key: [bool(rng.uniform() < p) for _ in range(40)] for key, p in PANEL.items()}
            append_record(file, {"kind": "panel", "condition": condition, "seed": seed, "tasks": ["A"] * 40} | answers)
    return read_results(folder)


@pytest.fixture
def made(tmp_path):
    """Write and read results, each in a folder of its own."""

    def make(*arguments, **options):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return write_results(folder, *arguments, **options)

    return make


CASES: dict[str, dict[str, Any]] = {
    "one seed": {},
    "three seeds": {"seeds": (0, 1, 2), "budget": 0.05},
    "only naive": {"conditions": ("naive",)},
    "a condition of the future": {"conditions": (*ALL, "<b>ewc</b>")},
    "five conditions": {"conditions": (*ALL, "modular@0.01", "ewc"), "seeds": (0, 1), "budget": 0.05},
    "of an earlier version": {"smallest": False, "budget": 0.05},
    "interrupted": {"phases": 7},
    "interrupted in the second seed": {"seeds": (0, 1, 2), "phases": 13},
    "not one phase": {"phases": 0},
    "one phase": {"phases": 1},
    "one task": {"tasks": ["Only"]},
    "twelve tasks": {"tasks": [f"Domain number {index}" for index in range(12)]},
    "odd names": {"tasks": ODD, "model": "<img src=x onerror=alert(2)>"},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", CASES)
def test_write_report_from_any_state_of_a_run(tmp_path, case):
    results = write_results(tmp_path, **CASES[case])
    written = write_report(tmp_path)
    assert written[-1] == tmp_path / "report.html"
    assert all(path.read_bytes().startswith(PNG) for path in written[:-1])
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {str(path.relative_to(tmp_path)) for path in written} | {"results.jsonl"}
    assert all(label(readable(name), 30)[:9] in rendered(summary_table(results), 100) for name in results.conditions)


def test_a_finished_run_gives_every_picture_and_a_run_without_crma_no_spectra(made):
    names = set(draw_pictures(made()))
    spectra = {"spectral_norm.png", "displacement.png"}
    assert names == {"overview.png", "holdout.png", "loss.png", "drift.png", "gradient_norms.png"} | spectra
    assert set(draw_pictures(made(conditions=("naive", "frozen")))) == names - spectra


def test_displacement_shows_both_extremes_and_leaves_out_what_cannot_move(made):
    conditions = ("modular", "modular-still", "modular@0.001")
    figure = displacement_over_steps(made(conditions=conditions, budget=0.05))
    assert figure is not None
    (axes,) = figure.axes
    curves = [np.asarray(line.get_ydata(), float) for line in axes.get_lines() if np.size(line.get_xdata()) == 9]
    assert len(curves) == 2 * 2
    for largest, least in (curves[:2], curves[2:]):
        np.testing.assert_allclose(least[3:], largest[3:] / 3)
    assert min(axes.get_ylim()) > 1e-4
    assert readable("modular-still") in figure.get_suptitle()


def test_displacement_shows_what_earlier_tasks_see_beside_the_data_budget(made):
    results = made(conditions=("modular@data-0.002",))
    key = ("modular@data-0.002", 0, 1)  # a phase of a version that logged less
    log = results.phases[key].spectral.model_copy(update={"data_displacement_max": [], "norm_min": []})
    earlier = replace(results, phases=results.phases | {key: results.phases[key].model_copy(update={"spectral": log})})
    for given, missing in ((results, 3), (earlier, 6)):
        figure = displacement_over_steps(given)
        assert figure is not None
        (axes,) = figure.axes
        largest, _, seen = (np.asarray(line.get_ydata(), float) for line in axes.get_lines()[:3])
        assert np.isnan(seen).sum() == missing
        np.testing.assert_allclose(seen[missing:], largest[missing:] / 10)
        assert {text.get_text() for text in axes.texts} == {"ε = 0.002"}
        assert "what earlier tasks see" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert "spectral_norm.png" in draw_pictures(earlier)


def test_pictures_of_the_same_results_are_the_same_bytes_and_leave_matplotlib_as_it_was(made):
    results = made(tasks=["A", "B"], conditions=("frozen", "modular"))
    before = dict(matplotlib.rcParams)
    assert draw_pictures(results) == draw_pictures(results)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.clause("CL-2", "CL-3", "CL-4", "CL-5", "CL-8")
def test_summary_rows_give_mean_sample_deviation_and_range_over_the_seeds(made):
    results = made(seeds=(3, 4, 5))
    (row,) = (row for row in summary_rows(results) if row.condition == "modular" and not row.source)
    drifts = [100 * results.metrics("modular", seed).drift for seed in (3, 4, 5)]
    gains = [100 * results.advantage("modular", seed) for seed in (3, 4, 5)]
    holdouts = [results.metrics("modular", seed).final_holdout for seed in (3, 4, 5)]
    assert row.seeds == "3"
    for cell, values in ((row.drift, drifts), (row.advantage, gains)):
        spread, extremes = cell.split("\n")
        mean, deviation = spread.split(" ± ")
        assert number(mean) == pytest.approx(statistics.fmean(values), abs=0.006)
        assert number(deviation) == pytest.approx(statistics.stdev(values), abs=0.006)
        assert [number(part) for part in extremes.split(" to ")] == pytest.approx([min(values), max(values)], abs=0.006)
    assert number(row.holdout.split(" ± ")[0]) == pytest.approx(statistics.fmean(holdouts), abs=0.0006)
    (frozen,) = (row for row in summary_rows(results) if row.condition == "frozen" and not row.source)
    assert (frozen.drift, frozen.advantage) == ("0 exactly", "–")
    rows = [row for row in seed_rows(results) if row.condition == "modular"]
    assert [row.seeds for row in rows] == ["3", "4", "5"]
    assert [number(row.drift) for row in rows] == pytest.approx(drifts, abs=0.006)


@pytest.mark.clause("CL-6")
def test_forward_transfer_is_shown_where_the_base_model_was_measured(made):
    results = made(base=True)
    (row,) = (row for row in summary_rows(results) if row.condition == "modular" and not row.source)
    before = [results.phases["modular", 0, phase].before for phase in range(3)]
    base = [results.base[0].holdout[task] for task in results.tasks]
    expected = statistics.fmean([before[1] - base[1], before[2] - base[2]])
    assert number(row.transfer) == pytest.approx(expected, abs=0.0006)
    assert "transfer" in rendered(summary_table(results), 100)
    without = made()
    assert {row.transfer for row in summary_rows(without)} == {"–"}


@pytest.mark.clause("CL-9")
def test_paired_rows_compare_modular_with_each_other_condition_over_common_seeds(made):
    results = made(conditions=(*ALL, "modular@0.01", "ewc"), seeds=(1, 2, 3, 4))
    rows = {(row.against, row.measure): row for row in paired_rows(results)}
    assert {against for against, _ in rows} == {"naive", "frozen", "ewc"}
    ours, theirs = ([results.metrics(name, seed).final_holdout for seed in (1, 2, 3, 4)] for name in ("modular", "ewc"))
    row = rows["ewc", "final holdout, nats"]
    assert row.n == 4
    assert number(row.difference) == pytest.approx(statistics.fmean(ours) - statistics.fmean(theirs), abs=0.0006)
    assert number(row.t) == pytest.approx(reference.paired_t_test(ours, theirs).p, abs=0.0006)
    assert number(row.flip) == pytest.approx(reference.sign_flip_test(ours, theirs), abs=0.0006)
    assert paired_rows(made()) == []  # one seed


def test_a_frozen_condition_that_drifts_is_not_shown_as_zero(made):
    results = made(conditions=("frozen",))
    last = results.phases["frozen", 0, 2]
    last.holdout["Medical"] *= 1 + 1e-9
    (row,) = (row for row in summary_rows(results) if not row.source)
    assert row.drift not in ("0 exactly", "–")
    assert 0 < number(row.drift) < 1e-6


@pytest.mark.parametrize(
    ("protocol", "tasks", "sources"),
    [
        ("quickstart", FIVE, ["Table 7, Mistral-7B"]),
        ("mine.toml", FIVE[::-1], ["Table 7, Mistral-7B"]),
        ("four-domain", FIVE[:4], ["Table 6, Mistral-7B", "Table 6, TinyLlama-1.1B"]),
        ("gemma-five-phase", FIVE, []),
        ("fictional", INVENTED, []),
        ("quickstart", THREE, []),
        ("four-domain", ["support", "law"], []),
    ],
)
def test_the_paper_beside_is_chosen_by_the_tasks(made, protocol, tasks, sources):
    results = made(protocol=protocol, tasks=tasks, panel=True)
    assert [row.source for row in summary_rows(results) if row.condition == "naive" and row.source] == sources
    assert ("another model" in " ".join(rendered(summary_table(results), 100).split())) == bool(sources)
    figure = drift_bars(results)
    assert figure is not None
    assert any("(paper" in note.get_text() for axes in figure.axes for note in axes.texts) == bool(sources)
    assert ("Table 8" in report_html(results, {})) == (set(tasks) == set(FIVE))


def test_summary_keeps_the_paper_apart_and_marks_unfinished_seeds(made):
    results = made(tasks=FIVE, seeds=(0, 1), phases=9)
    rows = summary_rows(results)
    (paper,) = (row for row in rows if row.source and row.condition == "modular")
    assert paper[1:5] == ("3", "−0.17 ± 0.17", "1.2631", "+1.99 ± 0.54")
    own = {row.condition: (row.seeds, row.drift) for row in rows if not row.source}
    assert own["frozen"] == ("0 of 2", "4 of 5 phases")
    assert own["naive"][0] == "1 of 2"
    seeds = {(row.condition, row.seeds): row.drift for row in seed_rows(results)}
    assert seeds["modular", "1"] == "0 of 5 phases"
    text = rendered(summary_table(results), 100)
    assert "another model and scale" in " ".join(text.split())
    assert "+1.95%" in text


def test_the_table_fits_a_terminal_of_80_columns(made):
    lines = rendered(summary_table(made(tasks=FIVE, seeds=(0, 1, 2)), 80), 80).splitlines()
    assert max(map(len, lines)) <= 80
    (modular,) = (line for line in lines if line.strip().startswith("MODULAR "))
    assert modular.count("±") == 3  # not wrapped


@pytest.mark.clause("CL-7", "CL-8")
@pytest.mark.parametrize("seeds", [(4,), (4, 5, 6)])
def test_the_change_of_exact_match_is_shown_beside_the_papers(made, seeds):
    results = made(INVENTED, seeds=seeds, protocol="fictional", base=True, canaries=True)
    (row,) = (row for row in summary_rows(results) if row.condition == "modular")
    values = [results.exact_match_transfer("modular", seed) for seed in seeds]
    mean, *deviation = row.exact_match.split(" ± ")
    assert number(mean) == pytest.approx(statistics.fmean(values), abs=0.0006)
    assert len(deviation) == (len(seeds) > 1)
    assert not deviation or number(deviation[0]) == pytest.approx(statistics.stdev(values), abs=0.0006)
    for width in (80, 100, 130):  # as a column where there is room, else below the table
        text = " ".join(rendered(summary_table(results, width), width).split())
        assert row.exact_match in text
        assert "−0.090 for NAIVE and +0.020 for MODULAR" in text
    parsed = Page()
    parsed.feed(report_html(results, {}))
    assert parsed.text.count(row.exact_match) >= 2  # among the results, and beside the paper's
    assert "−0.090" in parsed.text[parsed.text.index("paper: NAIVE (plain LoRA)") :]
    assert "+0.020" in parsed.text[parsed.text.index("paper: MODULAR (CRMA)") :]
    own = made(seeds=seeds, canaries=True)
    assert "plain LoRA" not in report_html(own, {})
    assert "section 6.2" not in " ".join(rendered(summary_table(own), 100).split())


def test_a_wide_terminal_has_a_column_of_exact_match_if_there_are_canaries(made):
    for canaries in (True, False):
        lines = rendered(summary_table(made(base=True, canaries=canaries), 130), 130).splitlines()
        assert any(line.endswith("exact match") for line in map(str.rstrip, lines)) == canaries


SEVEN = (*ALL, "modular@0.01", "frozen-raised", "modular-unconstrained", "ewc")


@pytest.mark.clause("CL-2", "CL-3", "CL-7", "CL-8")
@pytest.mark.parametrize("canaries", [False, True])
@pytest.mark.parametrize("conditions", [ALL, SEVEN])
def test_every_order_of_the_tasks_fits_80_columns_and_has_their_mean(made, conditions, canaries):
    runs = [made(tasks, conditions, (0, 1), canaries=canaries) for tasks in (INVENTED, INVENTED[::-1])]
    text = rendered(orders_table(runs, 80), 80)
    assert max(map(cell_len, text.splitlines())) <= 80
    assert "…" not in text
    assert all(readable(name) in text for name in conditions)
    assert text.count("mean of 2 orders") == text.count("Fictional-Company,") / 2 > 0
    assert text.count("± is") == 1
    drifts, losses, changes = zip(*(means_of_naive(results, (0, 1)) for results in runs), strict=True)
    lines = text[text.index("mean of 2 orders") :].removeprefix("mean of 2 orders").splitlines()
    expected = [[100 * drift for drift in drifts], losses, *([changes] if canaries else [])]
    for line, values in zip(lines, expected, strict=False):
        mean, sign, deviation, *_ = line.split()
        assert sign == "±"
        assert number(mean) == pytest.approx(statistics.fmean(values), abs=0.006)
        assert number(deviation) == pytest.approx(statistics.stdev(values), abs=0.006)
    assert ("exact match" in text) == canaries


def means_of_naive(results, seeds):
    metrics = [results.metrics("naive", seed) for seed in seeds]
    changes = [results.exact_match_transfer("naive", seed) or 0.0 for seed in seeds]
    return [statistics.fmean(v) for v in ([m.drift for m in metrics], [m.final_holdout for m in metrics], changes)]


def test_every_order_of_the_tasks_names_random_weights(made):
    text = rendered(orders_table([made(random_weights=True)]), 80)
    assert RANDOM_WEIGHTS in text
    assert RANDOM_WEIGHTS.capitalize() in text
    assert "andom weights" not in rendered(orders_table([made()]), 80)


def test_a_single_task_has_no_drift(made):
    rows = summary_rows(made(tasks=["Only"], seeds=(0, 1)))
    assert {row.drift for row in rows if not row.source} == {"–"}


def test_random_weights_are_named_in_table_page_and_every_picture(made):
    results = made(random_weights=True)
    plain = made()
    assert RANDOM_WEIGHTS in rendered(summary_table(results), 100)
    assert "random weights" not in rendered(summary_table(plain), 100).lower()
    assert "Random weights." in report_html(results, {})
    assert "andom weights" not in report_html(plain, {})
    heights = {name: height_of(png) for name, png in draw_pictures(plain).items()}
    marked = {name: height_of(png) for name, png in draw_pictures(results).items()}
    assert marked == {name: height + 39 for name, height in heights.items()}  # a line of 0.26 inches below


def texts_of(figure):
    """Every text whose place is known once the figure is laid out; marks of x may lie beyond its limits."""
    figure.draw_without_rendering()
    legends = [*figure.legends, *(legend for part in figure.subfigs for legend in part.legends)]
    texts = [text for legend in legends for text in legend.get_texts()]
    for axes in figure.axes:
        texts += [*axes.texts, *axes.get_yticklabels(), *(artist for artist in axes.get_children() if is_title(artist))]
    return [text for text in texts if text.get_visible() and text.get_text()]


@pytest.mark.parametrize("paint", [overview, drift_bars])
@pytest.mark.parametrize("conditions", [ALL, (*ALL, "frozen-raised", "modular-unconstrained"), SEVEN])
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_no_label_of_the_bars_is_cut_off_or_covers_another(made, paint, conditions, seeds):
    results = made(tasks=FIVE, conditions=conditions, seeds=seeds)
    with matplotlib.style.context(["default", STYLE]):
        figure = paint(results)
        texts = texts_of(figure)
        boxes = [text.get_window_extent() for text in texts]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    labels = [box for text, box in zip(texts, boxes, strict=True) if isinstance(text, Annotation)]
    assert len(labels) > 2 * len(ALL) - 2
    assert not any(one.overlaps(other) for index, one in enumerate(labels) for other in labels[:index])


def with_loss(results, condition, factor, earlier=1.0):
    """Make the final losses of ``condition`` ``factor`` times FROZEN's, and earlier ones ``earlier`` times these."""
    for seed in results.seeds:
        frozen = results.phases_of("frozen", seed)[-1].holdout
        phases = results.phases_of(condition, seed)
        for index, record in enumerate(phases):
            for task in record.holdout:
                record.holdout[task] = frozen[task] * factor * (1 if index == len(phases) - 1 else earlier)


def test_conditions_outside_the_budgets_frame_are_named_above_it_and_have_no_mark(made):
    conditions = (*ALL, "modular@0.001", "modular@0.01", "modular@0.02", "modular-pinned", "full")
    results = made(conditions=conditions, budget=0.005)
    near = {"modular": 1.001, "modular@0.001": 1.00103, "modular@0.01": 1.00106, "modular@0.02": 1.00109}
    for name, earlier in {"naive": 0.9, "full": 0.5, **near}.items():
        with_loss(results, name, 0.99 + earlier / 1e4, earlier)
    with_loss(results, "modular-pinned", 1.5)
    with matplotlib.style.context(["default", STYLE]):
        figure = budget_trade_off(results)
        assert figure is not None
        texts = texts_of(figure)
        (axes,) = figure.axes
        boxes = [note.get_window_extent() for note in axes.texts]
    (title,) = (text.get_text() for text in texts if "outside" in text.get_text())
    assert "MODULAR, pinned (drift 0 exactly, advantage −50.00)" in " ".join(title.split("\n"))
    assert "NAIVE" in title
    assert "Full" in title
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"FROZEN", "MODULAR"}
    assert {note.get_text() for note in axes.texts} == {"δ 0.005", "δ 0.001", "δ 0.01", "δ 0.02"}
    assert not any(one.overlaps(other) for index, one in enumerate(boxes) for other in boxes[:index])
    marks = [line for line in axes.lines if line.get_marker() in ("d", "D")]
    points = [axes.transData.transform(np.asarray(line.get_xydata())[0]) for line in marks]
    assert len(points) == 4
    assert not any(box.contains(*point) for box in boxes for point in points)


def is_title(artist):
    return isinstance(artist, Text) and not isinstance(artist, Annotation) and artist.get_text() != ""


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0 exactly"), (-0.0031, "−0.003"), (-1e-9, "−1e−09"), (-0.166, "−0.17"), (42.96, "+42.96")],
)
def test_a_percentage_that_is_not_zero_is_never_shown_as_zero(value, shown):
    assert percent(value) == shown


def test_a_name_that_no_font_can_draw_is_numbered_and_one_of_another_font_is_drawn(made):
    names = ["Legal", "Код", "\U0001d49c\U0001d4b7"]  # DejaVu Sans lacks the last, and matplotlib brings a font for it
    results = made(tasks=names)
    with matplotlib.style.context(["default", STYLE]):
        assert task_labels(results, 20) == [*names[:2], "task 3"]
        matplotlib.rcParams["font.family"] = families = families_for(names)
        assert task_labels(results, 20) == names
    assert families[0] == "DejaVu Sans"
    assert len(families) == 2
    assert families_for(names[:2]) == ["DejaVu Sans"]
    assert names[2] in report_html(results, {})


def test_every_condition_has_a_mark_and_a_name_of_its_own():
    budgets = ["modular@0.001", "modular@0.01", "modular@0.1", "modular@none"]
    budgets += [f"modular@{kind}-{size}" for kind in ("still", "data") for size in (0.001, 0.01)]
    names = [*KNOWN, *budgets]
    assert len({readable(name) for name in names}) == len(names)
    assert len({mark_of(name).colour for name in names}) == len(names)
    assert len({(str(mark_of(name).line), mark_of(name).marker) for name in KNOWN}) == len(KNOWN)
    assert readable("modular@0.002") == "MODULAR, δ 0.002"
    assert readable("modular@nonsense") == "MODULAR@NONSENSE"
    assert readable("modular-inherit@data-0.003") == "MODULAR, inherit, data ε 0.003"
    assert readable("modular-inherit@none") == "MODULAR, inherit, no budget"
    assert readable("modular@still-0.01") == "MODULAR, still basis, δ 0.01"
    assert budget_of("modular@0.01") == 0.01
    assert budget_of("modular@still-0.01") is budget_of("modular@data-0.01") is None


def test_a_run_with_a_data_budget_has_no_displacement_budget_where_none_is_named(made):
    """In the picture of that budget's trade-off it would stand as "no budget"."""
    names = ("frozen", "modular", "modular@0.01", "modular@none")
    plain = made(conditions=names)
    results = replace(plain, run=plain.run.model_copy(update={"data_budget": 0.003}))
    assert [budget_in(results, name) for name in names] == [math.inf, None, 0.01, math.inf]
    assert budget_in(plain, "modular") == math.inf


MANY = (*KNOWN, "modular@0.001", "modular@0.05", "modular@none")


@pytest.mark.slow
def test_sixteen_conditions_give_every_picture(tmp_path):
    write_results(tmp_path, conditions=MANY, seeds=(0, 1, 2), budget=0.01, base=True, canaries=True, panel=True)
    *pictures, page = write_report(tmp_path)
    assert {path.name for path in pictures} == {picture.name for picture in PICTURES}
    text = page.read_text(encoding="utf-8")
    assert all(f"{readable(name)}</td>" in text for name in MANY)


@pytest.mark.clause("CL-7", "CL-9")
def test_panel_and_canaries_are_counted_on_the_page(made):
    results = made(conditions=("frozen", "modular"), base=True, canaries=True, panel=True)
    panel = results.panels["modular", 0]
    right, bypassed = sum(panel.with_crma), sum(panel.without_crma)
    low, high = reference.wilson_interval(right, 40)
    parsed = Page()
    parsed.feed(report_html(results, {}))
    assert f"{right}/40 ({100 * low:.1f} to {100 * high:.1f}%)" in parsed.text
    gained = sum(a and not b for a, b in zip(panel.with_crma, panel.without_crma, strict=True))
    lost = gained - (right - bypassed)
    assert f"{gained} / {lost}" in parsed.text
    assert f"{reference.mcnemar_exact(gained, lost):.2g}" in parsed.text
    low, high = reference.wilson_interval(sum(panel.without_both), 40)
    assert f"{sum(panel.without_both)}/40 ({100 * low:.1f} to {100 * high:.1f}%)" in parsed.text
    earlier = results.panels["modular", 0].model_copy(update={"without_lora": [], "without_both": []})
    assert panel_rows(replace(results, panels={("modular", 0): earlier}))[0][-2:] == (None, None)
    assert f"{100 * results.phases['modular', 0, 2].exact_match['Medical']:.0f}%" in parsed.text
    assert {"panel.png", "exact_match.png"} <= set(draw_pictures(results))


def test_a_table_title_with_markup_is_shown_as_it_is(made):
    assert "[red]x[/red]" in rendered(summary_table(made(model="[red]x[/red]")), 100)


class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def test_the_page_is_self_contained_and_user_text_in_it_is_inert(tmp_path):
    write_results(tmp_path, **CASES["odd names"], conditions=(*ALL, "<b>ewc</b>"))
    *pictures, page = write_report(tmp_path)
    text = page.read_text(encoding="utf-8")
    parsed = Page()
    parsed.feed(text)
    assert not {"script", "iframe", "link", "object", "b"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    links = [value for name, value in parsed.attributes if name in ("src", "href", "srcset", "style", "action")]
    assert all(value.startswith("data:image/png;base64,") for value in links)
    assert "url(" not in text
    assert "@import" not in text
    assert "<script>alert(1)</script>" in parsed.text
    assert "<img src=x onerror=alert(2)>" in parsed.text
    images = [value for name, value in parsed.attributes if name == "src"]
    embedded = {base64.b64decode(value.removeprefix("data:image/png;base64,")) for value in images}
    assert embedded == {path.read_bytes() for path in pictures if path.name != "overview.png"}


def test_the_page_shows_phases_speed_parameters_and_configuration(made):
    results = made(phases=7)
    parsed = Page()
    parsed.feed(report_html(results, {}))
    assert "7 of 9 phases" in parsed.text
    assert "2,500" in parsed.text  # 5000 tokens in 2 s
    assert "NAIVE · FROZEN: lora 2,442,240" in parsed.text
    assert "MODULAR: lora 2,442,240, crma 276,480" in parsed.text
    assert json.dumps(results.run.config, indent=2) in parsed.text
    assert f"{results.phases['naive', 0, 2].holdout['Science']:.3f}" in parsed.text
    assert "Unfinished" not in report_html(made(), {})


@pytest.mark.clause("ERR-4")
def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    write_results(tmp_path)
    before = {path: path.read_bytes() for path in write_report(tmp_path)}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskSpaceError):
        write_report(tmp_path)
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(tmp_path.rglob("*.*"))) == len(before) + 1


def test_a_report_onto_a_folder_is_one_clear_error(tmp_path):
    write_results(tmp_path)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(RunFolderError, match=r"report\.html"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "shown"),
    [("Medical", "Medical"), ("x\ny\x07", r"x y\x07"), (" \n", "(no name)"), ("Domain number 11", "Domain…11")],
)
def test_label_is_one_printable_line(name, shown):
    assert label(name, 9) == shown


def height_of(png):
    with Image.open(io.BytesIO(png)) as picture:
        return picture.height


def number(cell):
    return float(cell.replace("−", "-").removesuffix(" exactly"))


def rendered(table, width):
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()

"""The report: right numbers, whole pictures, and a page that fetches and runs nothing, from any state of a run."""

import base64
import html.parser
import json
import statistics
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from backends.finetune.pictures import draw_pictures
from backends.finetune.pictures.style import label
from backends.finetune.report import report_html, summary_rows, summary_table, write_report
from backends.finetune.results import append_record, read_results
from reference.errors import DiskSpaceError, RunFolderError

THREE = ["Medical", "Legal", "Science"]
ODD = ["<script>alert(1)</script>", "a$b_{c}$ \\frac", "医学 🧬", "x\ny", "[red]bold[/red] \ud800"]
ALL = ("naive", "frozen", "modular")
PNG = b"\x89PNG\r\n\x1a\n"


def write_results(folder, tasks=THREE, conditions=ALL, seeds=(0,), phases=None, budget=None, model="SmolLM2"):
    """Results with random losses; the first ``phases`` phases only, where that is given."""
    rng = np.random.default_rng()
    file = folder / "results.jsonl"
    run = {"kind": "run", "protocol": "quickstart", "model": model, "backend": "torch-cpu", "tasks": list(tasks)}
    run |= {"conditions": list(conditions), "seeds": list(seeds), "displacement_budget": budget}
    run |= {"versions": {"crma": "0.1.0"}, "config": {"model": model, "epochs": 3}}
    append_record(file, run)
    order = [(c, s, p) for s in seeds for c in conditions for p in range(len(tasks))]
    holdout: dict[tuple[str, int], dict[str, float]] = {}
    for condition, seed, phase in order[:phases]:
        seen = holdout.setdefault((condition, seed), {})
        if condition != "frozen":
            seen.update({task: loss * rng.uniform(0.97, 1.1) for task, loss in seen.items()})
        seen[tasks[phase]] = rng.uniform(1, 3)
        steps = [0, 5, 10]
        spectral = {"steps": steps, "norm_max": [1 + 1e-7] * 3, "adapter_max": [1.0] * 3, "adapter_min": [0.9] * 3}
        spectral["displacement_max"] = [0.01 * phase + 0.001 * s if phase else None for s in steps]
        record = {"kind": "phase", "condition": condition, "seed": seed, "phase": phase, "task": tasks[phase]}
        record |= {"losses": rng.uniform(1, 4, 10), "holdout": seen, "seconds": 2.0, "tokens": 5000}
        record |= {"parameters": {"lora": 2442240}}
        append_record(file, record | {"spectral": spectral if condition == "modular" else None})
    return read_results(folder)


CASES: dict[str, dict[str, Any]] = {
    "one seed": {},
    "three seeds": {"seeds": (0, 1, 2), "budget": 0.05},
    "only naive": {"conditions": ("naive",)},
    "a condition of the future": {"conditions": (*ALL, "<b>ewc</b>")},
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
    assert rendered(summary_table(results), 100).count("this run") >= len(results.conditions)


def test_a_finished_run_gives_every_picture_and_a_run_without_crma_no_spectra(tmp_path):
    (tmp_path / "all").mkdir()
    (tmp_path / "naive").mkdir()
    names = set(draw_pictures(write_results(tmp_path / "all")))
    spectra = {"spectral_norm.png", "displacement.png"}
    assert names == {"overview.png", "holdout.png", "loss.png", "drift.png"} | spectra
    assert set(draw_pictures(write_results(tmp_path / "naive", conditions=("naive", "frozen")))) == names - spectra


def test_pictures_of_the_same_results_are_the_same_bytes_and_leave_matplotlib_as_it_was(tmp_path):
    import matplotlib

    results = write_results(tmp_path, tasks=["A", "B"], conditions=("frozen", "modular"))
    before = dict(matplotlib.rcParams)
    assert draw_pictures(results) == draw_pictures(results)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.clause("CL-2", "CL-3", "CL-4", "CL-5")
def test_summary_rows_give_the_metrics_of_each_seed_and_their_mean_and_sample_deviation(tmp_path):
    results = write_results(tmp_path, seeds=(3, 4, 5))
    rows = [row for row in summary_rows(results) if row.condition == "modular" and not row.paper]
    drifts = [100 * results.metrics("modular", seed).drift for seed in (3, 4, 5)]
    gains = [100 * results.advantage("modular", seed) for seed in (3, 4, 5)]
    assert [number(row.drift) for row in rows[:3]] == pytest.approx(drifts, abs=0.006)
    assert [number(row.advantage) for row in rows[:3]] == pytest.approx(gains, abs=0.006)
    assert [row.seed for row in rows] == ["3", "4", "5", "mean (3)"]
    mean, deviation = rows[3].drift.split(" ± ")
    assert number(mean) == pytest.approx(statistics.fmean(drifts), abs=0.006)
    assert number(deviation) == pytest.approx(statistics.stdev(drifts), abs=0.006)
    frozen = [row for row in summary_rows(results) if row.condition == "frozen" and not row.paper]
    assert {row.drift for row in frozen} == {"0 exactly"}
    assert {row.advantage for row in frozen} == {"–"}


def test_a_frozen_condition_that_drifts_is_not_shown_as_zero(tmp_path):
    results = write_results(tmp_path, conditions=("frozen",))
    last = results.phases["frozen", 0, 2]
    last.holdout["Medical"] *= 1 + 1e-9
    (row,) = (row for row in summary_rows(results) if not row.paper)
    assert row.drift == "+0.00"


def test_summary_keeps_the_paper_apart_and_marks_unfinished_seeds(tmp_path):
    results = write_results(tmp_path, seeds=(0, 1), phases=5)
    rows = summary_rows(results)
    paper = [row for row in rows if row.paper and row.condition == "modular"]
    assert [(row.seed, row.drift, row.holdout, row.advantage) for row in paper] == [
        ("0", "−0.03", "1.2530", "+1.46"),
        ("42", "−0.10", "1.2657", "+1.97"),
        ("1234", "−0.36", "1.2705", "+2.54"),
        ("mean (3)", "−0.17 ± 0.17", "1.2631", "+1.99 ± 0.54"),
    ]
    own = {(row.condition, row.seed): row.drift for row in rows if not row.paper}
    assert own["frozen", "0"] == "2 of 3 phases"
    assert own["modular", "1"] == "0 of 3 phases"
    text = rendered(summary_table(results), 100)
    assert "another model and scale" in text
    assert "+1.95%" in text


def test_the_table_fits_a_terminal_of_80_columns(tmp_path):
    lines = rendered(summary_table(write_results(tmp_path, seeds=(0, 1, 2))), 80).splitlines()
    means = [line for line in lines if "mean (3)" in line and "this run" in line]
    assert len(means) == 3
    assert "±" in means[2].split()[-2]  # not wrapped
    assert sum("paper" in line and "mean" in line for line in lines) == 3


def test_a_single_task_has_no_drift(tmp_path):
    rows = summary_rows(write_results(tmp_path, tasks=["Only"], seeds=(0, 1)))
    assert {row.drift for row in rows if not row.paper} == {"–"}


def test_a_table_title_with_markup_is_shown_as_it_is(tmp_path):
    assert "[red]x[/red]" in rendered(summary_table(write_results(tmp_path, model="[red]x[/red]")), 100)


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


def test_the_page_shows_phases_speed_parameters_and_configuration(tmp_path):
    results = write_results(tmp_path, phases=7)
    parsed = Page()
    parsed.feed(report_html(results, {}))
    assert "7 of 9 phases" in parsed.text
    assert "2,500" in parsed.text  # 5000 tokens in 2 s
    assert "lora 2,442,240" in parsed.text
    assert json.dumps(results.run.config, indent=2) in parsed.text
    assert f"{results.phases['naive', 0, 2].holdout['Science']:.3f}" in parsed.text
    assert "Unfinished" not in report_html(write_results(fresh(tmp_path)), {})


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
    [("Medical", "Medical"), ("x\ny\x07", "x y"), (" \n", "(no name)"), ("Domain number 11", "Domain…11")],
)
def test_label_is_one_printable_line(name, shown):
    assert label(name, 9) == shown


def number(cell):
    return float(cell.replace("−", "-"))


def rendered(table, width):
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def fresh(folder):
    (folder / "fresh").mkdir()
    return folder / "fresh"

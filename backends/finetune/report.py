"""The report of a run folder: the summary table, the pictures and one self-contained HTML page."""

from __future__ import annotations

import base64
import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from rich.box import HORIZONTALS
from rich.table import Table
from rich.text import Text

from backends.atomic import atomic_write
from backends.finetune.paper import PAPER_SEEDS, PAPER_TABLE_7, PaperColumn
from backends.finetune.pictures import draw_pictures
from backends.finetune.pictures.style import label
from backends.finetune.results import RunResults, read_results
from reference.errors import DiskSpaceError, RunFolderError

COLUMNS = ("condition", "from", "seed", "drift, %", "holdout, nats", "advantage, %")
CAPTION = (
    "paper = Table 7, Mistral-7B: another model and scale, not comparable in size. "
    "FROZEN never changes a finished task's adapter, so a correct harness gives it a drift of exactly 0; the paper "
    "reports +1.95%. Holdout is the final loss per answer token, averaged over tasks; advantage is over FROZEN. "
    "± is the sample standard deviation over seeds."
)
_CAPTIONS = {
    "overview.png": "The run at a glance. Left: how each task's holdout loss changed after its own phase (read a "
    "column downwards from the diagonal). Right: the means of these changes, beside the paper's.",
    "holdout.png": "Read a column downwards: it starts on the diagonal, in the task's own phase, and each lower row is "
    "measured after one more phase. Orange cells forgot, purple cells improved, white cells kept what they had.",
    "loss.png": "Top: training loss, a moving average over an eighth of a phase; it jumps where a new task starts. "
    "Below: the holdout loss of each task from its own phase on; a flat line means that nothing was forgotten. With "
    "several seeds the line is their mean and the band their range.",
    "drift.png": "Bars are means, dots the seeds, lines their range. Below the names, the paper's means, of another "
    "model and scale: compare directions, not sizes. Drift is better low, advantage better high.",
    "spectral_norm.png": "Top: the worst layer's spectral norm of the mixing matrix, minus 1; only float32 rounding "
    "should be seen, below the dashed bound of 5e-7. Bottom: the whole adapter's largest singular value must not "
    "exceed 1; the smallest says how much of some direction the worst layer removes.",
    "displacement.png": "The spectral norm of the difference between the adapter now and its anchor, in the worst "
    "layer: no hidden vector there has changed by more than this times its length. No line: no anchor yet.",
}
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class SummaryRow(NamedTuple):
    """One line of the summary, its cells as text. ``paper``: taken from Table 7. ``mean``: over several seeds."""

    condition: str
    seed: str
    drift: str
    holdout: str
    advantage: str
    paper: bool
    mean: bool


def summary_rows(results: RunResults) -> list[SummaryRow]:
    """Per condition: this run's seeds and their mean, then the paper's. Percent and nats per answer token."""
    rows: list[SummaryRow] = []
    for condition in results.conditions:
        rows += _own_rows(results, condition)
        rows += _paper_rows(condition)
    return rows


def summary_table(results: RunResults) -> Table:
    """The summary as a table for the terminal; the paper's rows are dim and say "paper". Clauses: CL-2..CL-5."""
    run = results.run
    title = Text(f"{label(run.model, 40)}, protocol {label(run.protocol, 30)}, {label(run.backend, 30)}")
    table = Table(
        title=title,
        caption=Text(CAPTION),
        caption_justify="left",
        title_justify="left",
        box=HORIZONTALS,
        pad_edge=False,
    )
    for index, heading in enumerate(COLUMNS):
        table.add_column(heading, justify="left" if index < 3 else "right", no_wrap=index != 4)
    previous = None
    for row in summary_rows(results):
        if previous is not None and previous.condition != row.condition:
            table.add_section()
        new = previous is None or previous.condition != row.condition
        cells = (row.condition.upper() if new else "", "paper" if row.paper else "this run", *row[1:5])
        style = "dim" if row.paper else "bold" if row.mean else ""
        table.add_row(*(Text(cell) for cell in cells), style=style)
        previous = row
    return table


def write_report(run_folder: Path | str) -> list[Path]:
    """Write ``pictures/*.png`` and ``report.html`` into the run folder, each at once or not at all; list them.

    Works on an interrupted run: what is missing is left out, and the page says so. Nothing in the page is fetched
    from elsewhere, and nothing in it can run.

    Raises: RunFolderError if results.jsonl is missing or damaged, or the folder cannot be written; DiskSpaceError.
    """
    folder = Path(run_folder)
    results = read_results(folder)
    pictures = draw_pictures(results)
    page = report_html(results, pictures)
    files = {folder / "pictures" / name: content for name, content in pictures.items()}
    # A lone surrogate, which JSON can smuggle into a name, has no UTF-8 form.
    files[folder / "report.html"] = page.encode("utf-8", "xmlcharrefreplace")
    for path, content in files.items():
        _write(path, content)
    return list(files)


def report_html(results: RunResults, pictures: dict[str, bytes]) -> str:
    """The page as text; every value from the results is escaped, the pictures are data URIs."""
    expected = len(results.conditions) * len(results.seeds) * len(results.tasks)
    figures = [
        {
            "name": name.removesuffix(".png").replace("_", " "),
            "source": "data:image/png;base64," + base64.b64encode(content).decode(),
            "caption": _CAPTIONS[name],
        }
        for name, content in pictures.items()
        if name != "overview.png"  # a digest of pictures that the page shows in full
    ]
    return _TEMPLATES.get_template("report.html").render(
        run=results.run,
        conditions=[name.upper() for name in results.conditions],
        seeds=results.seeds,
        parameters=results.parameters,
        finished=len(results.phases),
        expected=expected,
        columns=COLUMNS,
        rows=summary_rows(results),
        caption=CAPTION,
        figures=figures,
        phases=_phase_rows(results),
        config=json.dumps(results.run.config, indent=2, ensure_ascii=False),
    )


def _own_rows(results: RunResults, condition: str) -> list[SummaryRow]:
    rows, drifts, holdouts, advantages = [], [], [], []
    for seed in results.seeds:
        metrics, gain = results.metrics(condition, seed), results.advantage(condition, seed)
        if metrics is None:
            done = f"{len(results.phases_of(condition, seed))} of {len(results.tasks)} phases"
            rows.append(SummaryRow(condition, str(seed), done, "–", "–", paper=False, mean=False))
            continue
        drifts.append(100 * metrics.drift)
        holdouts.append(metrics.final_holdout)
        advantages += [100 * gain] if gain is not None and condition != "frozen" else []
        shown = (_percent(drifts[-1]) if len(results.tasks) > 1 else "–", f"{holdouts[-1]:.3f}")
        gain_text = "–" if gain is None or condition == "frozen" else _percent(advantages[-1])
        rows.append(SummaryRow(condition, str(seed), *shown, gain_text, paper=False, mean=False))
    if len(drifts) > 1:
        drift = _mean(drifts, _percent) if len(results.tasks) > 1 else "–"
        gain_text = _mean(advantages, _percent) + (
            f" (of {len(advantages)})" if 0 < len(advantages) < len(drifts) else ""
        )
        cells = (drift, _mean(holdouts, "{:.3f}".format), gain_text)
        rows.append(SummaryRow(condition, f"mean ({len(drifts)})", *cells, paper=False, mean=True))
    return rows


def _paper_rows(condition: str) -> list[SummaryRow]:
    column = PAPER_TABLE_7.get(condition)
    if column is None:
        return []
    rows = []
    for index, seed in enumerate(PAPER_SEEDS):
        drift, holdout, gain = (None if part is None else part.seeds[index] for part in column)
        rows.append(
            SummaryRow(
                condition,
                str(seed),
                "–" if drift is None else _percent(drift),
                "–" if holdout is None else _loss(holdout),
                "–" if gain is None else _percent(gain),
                paper=True,
                mean=False,
            )
        )
    means = (
        _paper_mean(column.drift, _percent),
        _paper_mean(column.holdout, _loss),
        _paper_mean(column.advantage, _percent),
    )
    return [*rows, SummaryRow(condition, "mean (3)", *means, paper=True, mean=True)]


def _paper_mean(column: PaperColumn | None, form: Any) -> str:
    if column is None:
        return "–"
    return form(column.mean) + ("" if column.deviation is None else f" ± {column.deviation:.2f}")


def _mean(values: list[float], form: Any) -> str:
    if not values:
        return "–"
    if len(values) == 1 or not any(values):
        return str(form(values[0]))
    deviation = statistics.stdev(values)
    return f"{form(statistics.fmean(values))} ± {form(deviation).lstrip('+')}"


def _percent(value: float) -> str:
    return "0 exactly" if value == 0 else f"{value:+.2f}".replace("-", "−")


def _loss(value: float) -> str:
    return f"{value:.4f}"


def _phase_rows(results: RunResults) -> list[dict[str, Any]]:
    rows = []
    for condition in results.conditions:
        for seed in results.seeds:
            for record in results.phases_of(condition, seed):
                earlier = [f"{task} {record.holdout[task]:.3f}" for task in results.tasks[: record.phase]]
                rows.append(
                    {
                        "condition": condition.upper(),
                        "seed": seed,
                        "first": record.phase == 0,
                        "phase": record.phase + 1,
                        "task": record.task,
                        "own": f"{record.holdout[record.task]:.3f}",
                        "earlier": ", ".join(earlier) or "–",
                        "seconds": f"{record.seconds:.1f}",
                        "speed": f"{record.tokens / record.seconds:,.0f}" if record.seconds > 0 else "–",
                    }
                )
    return rows


def _write(path: Path, content: bytes) -> None:
    try:
        atomic_write(path, content)
    except DiskSpaceError:
        raise
    except OSError as error:
        raise RunFolderError(
            str(path),
            got=error.strerror or str(error),
            allowed="a run folder that can be written to",
            remedy="check the permissions of the folder and of the file",
        ) from error

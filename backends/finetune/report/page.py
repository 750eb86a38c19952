"""The report of a run folder: the summary table, the pictures and one self-contained HTML page."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jinja2

from backends.atomic import atomic_write
from backends.files import printable
from backends.finetune.report.answers import panel_rows
from backends.finetune.report.labels import RANDOM_WEIGHTS, readable
from backends.finetune.report.paper import TABLE_8, paper_fictional, paper_panels
from backends.finetune.report.pictures import draw_pictures
from backends.finetune.report.rows import paired_rows, seed_rows, signed, summary_rows
from backends.finetune.report.summary import COLUMNS, caption_of, summary_table
from backends.finetune.runs.results import RunResults
from backends.finetune.runs.run_folder import checked_results
from reference import wilson_interval
from reference.errors import DiskSpaceError, RunFolderError

_CAPTIONS = {
    "overview.png": "The run at a glance. Left: how each task's holdout loss changed after its own phase (read a "
    "column downwards from the diagonal). Right: the means of these changes.",
    "holdout.png": "Read a column downwards: it starts on the diagonal, in the task's own phase, and each lower row is "
    "measured after one more phase. Orange cells forgot, purple cells improved, white cells kept what they had.",
    "holdout_more.png": "The same for the other conditions, with the same colours.",
    "loss.png": "Top: training loss, a moving average over an eighth of a phase; it jumps where a new task starts. "
    "Below: the holdout loss of each task from its own phase on; a flat line means that nothing was forgotten. With "
    "several seeds the line is their mean and the band their range.",
    "loss_more.png": "Training loss of the other conditions, smoothed in the same way.",
    "drift.png": "Bars are means, dots the seeds, lines their range. Where there are any, the paper's means stand in "
    "brackets, of another model and scale: compare directions, not sizes. Drift is better low, advantage better high.",
    "budget.png": "Each point on the line is MODULAR with another displacement budget: how far the shared adapter may "
    "move from its state after the first task. The best corner is the upper left. The other conditions are for "
    "reference.",
    "exact_match.png": "How many of a task's canaries the model completes word for word. The line starts in the task's "
    "own phase, or before it where the condition was asked earlier.",
    "panel.png": "The same adapters answer the same questions, with the shared CRMA and with it bypassed.",
    "spectral_norm.png": "Top: the extreme layers' spectral norms of the mixing matrix, minus 1; only float32 rounding "
    "should be seen, below the dashed bound of 5e-7. Bottom: the whole adapter's largest singular value must not "
    "exceed 1; the smallest says how much of some direction the worst layer removes.",
    "displacement.png": "The spectral norm of the difference between the adapter now and its anchor, in the layers "
    "that moved furthest and least: no hidden vector there has changed by more than this times its length. No line: "
    "no anchor yet. Dotted: the budgets.",
    "gradient_norms.png": "Norm of the gradient of all of LoRA's parameters in each optimizer step, before clipping. "
    "With several seeds the line is their median and the band their range.",
}
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    # Turned the other way by a character in a name, a line would say what nobody wrote.
    finalize=lambda value: printable(value, keep="\n\t") if isinstance(value, str) else value,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["readable"] = readable


def write_report(run_folder: Path | str) -> list[Path]:
    """Write ``pictures/*.png`` and ``report.html`` into the run folder, each at once or not at all; list them.

    Works on an interrupted run: what is missing is left out, and the page says so. Nothing in the page is fetched
    from elsewhere, and nothing in it can run.

    Raises: RunFolderError if results.jsonl is missing or damaged, or the folder cannot be written; DiskSpaceError.
    """
    folder = Path(run_folder)
    results = checked_results(folder)
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
        random_weights=RANDOM_WEIGHTS if results.run.random_weights else "",
        conditions=[readable(name) for name in results.conditions],
        names=results.conditions,
        seeds=results.seeds,
        parameters=_parameters(results),
        finished=len(results.phases),
        expected=expected,
        columns=COLUMNS if results.has_canaries else COLUMNS[:-1],
        rows=summary_rows(results),
        seed_rows=seed_rows(results),
        paired=paired_rows(results),
        caption=caption_of(results),
        exact=_exact_match_rows(results),
        transfer=_exact_match_transfer(results),
        fictional=paper_fictional(results.run),
        panels=_panel_table(results),
        cut_options=sum(panel.cut for panel in results.panels.values()),
        figures=figures,
        phases=_phase_rows(results),
        texts=_text_rows(results),
        config=json.dumps(results.run.config, indent=2, ensure_ascii=False),
    )


def _panel_table(results: RunResults) -> list[dict[str, Any]]:
    """Counts, fractions with Wilson's 95% intervals and McNemar's p; then the paper's, which prints p about 8e-8."""
    rows: list[dict[str, Any]] = [
        {
            "name": f"{readable(row.condition)}, {row.seed}",
            "with": _fraction(row.with_crma, row.questions),
            "without": _fraction(row.without_crma, row.questions),
            "only": f"{row.gained} / {row.lost}",
            "p": f"{row.p:.2g}",
            "paper": False,
        }
        for row in panel_rows(results)
    ]
    if rows:
        rows += [
            {
                "name": panel.name,
                "with": _fraction(panel.with_crma, panel.questions),
                "without": _fraction(panel.without_crma, panel.questions),
                "only": "–",
                "p": "about 8e-8" if panel is TABLE_8[-1] else "–",
                "paper": True,
            }
            for panel in paper_panels(results.run)
        ]
    return rows


def _fraction(right: int, questions: int) -> str:
    low, high = wilson_interval(right, questions)
    return f"{right}/{questions} ({100 * low:.1f} to {100 * high:.1f}%)"


def _exact_match_rows(results: RunResults) -> list[dict[str, Any]]:
    """Per condition, seed and task with canaries: recalled after its own phase, and after the last one."""
    rows = []
    for condition in results.conditions:
        for seed in results.seeds:
            phases = results.phases_of(condition, seed)
            for record in phases:
                if record.task not in record.exact_match or record.task not in phases[-1].exact_match:
                    continue
                base = results.base.get(seed)
                bare = base.exact_match.get(record.task) if base else None
                rows.append(
                    {
                        "condition": readable(condition),
                        "seed": seed,
                        "task": record.task,
                        "base": "–" if bare is None else f"{100 * bare:.0f}%",
                        "own": f"{100 * record.exact_match[record.task]:.0f}%",
                        "final": f"{100 * phases[-1].exact_match[record.task]:.0f}%",
                    }
                )
    return rows


def _exact_match_transfer(results: RunResults) -> list[dict[str, Any]]:
    """Per condition the change of exact match over its seeds, then the paper's. Clauses: CL-7, CL-8."""
    paper = {row.condition: row for row in paper_fictional(results.run)}
    rows = []
    for row in summary_rows(results) if results.has_canaries else []:
        if row.source:
            continue
        rows.append({"name": readable(row.condition), "seeds": row.seeds, "change": row.exact_match, "paper": False})
        if row.condition in paper:
            theirs = paper[row.condition]
            change = signed(theirs.transfer_exact_match)
            rows.append({"name": f"paper: {theirs.name}", "seeds": "1", "change": change, "paper": True})
    return rows


def _parameters(results: RunResults) -> list[str]:
    """The trainable values of each condition that has finished a phase; those with the same ones together."""
    names: dict[str, list[str]] = {}
    for condition in results.conditions:
        counts = [f"{name} {count:,}" for name, count in results.parameters(condition).items()]
        if counts:
            names.setdefault(", ".join(counts), []).append(readable(condition))
    return [f"{' · '.join(conditions)}: {counts}" for counts, conditions in names.items()]


def _phase_rows(results: RunResults) -> list[dict[str, Any]]:
    rows = []
    for condition in results.conditions:
        for seed in results.seeds:
            for record in results.phases_of(condition, seed):
                earlier = [f"{task} {record.holdout[task]:.3f}" for task in results.tasks[: record.phase]]
                memory = "–" if record.memory_bytes is None else f"{record.memory_bytes / 2**30:.2f}"
                rows.append(
                    {
                        "condition": readable(condition),
                        "seed": seed,
                        "first": record.phase == 0,
                        "phase": record.phase + 1,
                        "task": record.task,
                        "before": "–" if record.before is None else f"{record.before:.3f}",
                        "own": f"{record.holdout[record.task]:.3f}",
                        "earlier": ", ".join(earlier) or "–",
                        "seconds": f"{record.seconds:.1f}",
                        "speed": f"{record.tokens / record.seconds:,.0f}" if record.seconds > 0 else "–",
                        "memory": memory,
                    }
                )
    return rows


def _text_rows(results: RunResults) -> list[dict[str, Any]]:
    """Per seed, task and side: the texts, and what max_tokens left out of them."""
    return [
        {"seed": seed, "task": task, "side": side, **record.model_dump()}
        for seed in results.seeds
        for task, sides in results.texts([seed]).items()
        for side, record in sides.items()
    ]


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


__all__ = ["report_html", "summary_table", "write_report"]

"""Drift and advantage as horizontal bars, one per condition."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from backends.finetune.report.labels import label, percent, readable
from backends.finetune.report.paper import PaperRow, paper_rows
from backends.finetune.report.pictures.style import FAINT, INK, Picture, heading, legend_below, mark_of, note
from backends.finetune.report.rows import values_of
from backends.finetune.runs.results import RunResults

WITH_PAPER = 5  # narrow bars with the paper's means: more have no room for a second line


def drift_bars(results: RunResults) -> Figure | None:
    """Drift and advantage per condition, with the seeds; the paper's means in the labels, as their scale is another."""
    shown = [name for name in results.conditions if results.complete_seeds(name)]
    if not shown:
        return None
    figure = Figure(figsize=(10, 2.0 + 0.42 * max(len(shown), 2)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    bar_panel(left, results, shown, "drift")
    bar_panel(right, results, shown, "advantage", named=False)
    left.set_title("Drift: loss gained since a task's own phase")
    right.set_title("Advantage over FROZEN")
    legend_below(figure, bar_handles(results), ncols=3, fontsize=9)
    heading(figure, "Forgetting and benefit")
    return figure


DRIFT = Picture(
    "drift.png",
    drift_bars,
    "Bars are means, dots the seeds, lines their range. Where there are any, the paper's means stand in "
    "brackets, of another model and scale: compare directions, not sizes. Drift is better low, advantage better high.",
)


def bar_panel(
    axes: Axes, results: RunResults, shown: list[str], measure: str, named: bool = True, narrow: bool = False
) -> None:
    """The bars of ``measure``, "drift" or "advantage"."""
    ours = {name: values_of(results, name, results.seeds)[measure] for name in shown}
    paper = {row.condition: getattr(row, measure) for row in _first_model(results)}
    axes.set_xlabel(f"{measure} (%)")
    axes.grid(False, axis="y")
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_yticks(range(len(shown)), [label(readable(name), 24) for name in shown], fontsize=8.5)
    if not named:
        axes.tick_params(axis="y", labelleft=False)
    if narrow and len(shown) > WITH_PAPER:
        paper = {}
    if not any(ours.values()):
        empty = "no finished run yet" if len(results.tasks) > 1 else "a single task cannot drift"
        if measure == "advantage":
            empty = "needs a finished FROZEN run\nof the same seed"
        axes.text(0.5, 0.5, empty, transform=axes.transAxes, ha="center", va="center", color=FAINT)
        axes.set_xticks([])
        return
    for place, name in enumerate(shown):
        if values := ours.get(name, []):
            _bar(axes, place, values, mark_of(name).colour)
            # In a column beside the axes: there the layout makes room for it, whatever the bars are.
            text = _in_words(values)
            if theirs := paper.get(name):
                text += ("\n" if narrow else "  ") + f"(paper {percent(theirs[0])})"
            size = 7.5 if narrow else 8
            note(axes, text, (1, place), (8, 0), va="center", fontsize=size, annotation_clip=False, linespacing=1.0)
    axes.margins(x=0.04)


def _first_model(results: RunResults) -> list[PaperRow]:
    rows = paper_rows(results.run)
    return [row for row in rows if row.model == rows[0].model]


def _bar(axes: Axes, place: float, values: list[float], colour: str) -> None:
    mean = float(np.mean(values))
    axes.barh([place], [mean], height=0.56, facecolor=colour)
    if len(values) > 1:
        axes.hlines(place, min(values), max(values), color=INK, linewidth=1.1)
        axes.plot(values, [place] * len(values), "o", color="white", markeredgecolor=INK, markersize=3.5)


def _in_words(values: list[float]) -> str:
    mean = float(np.mean(values))
    return f"{mean:+.1f}".replace("-", "−") if abs(mean) >= 10 else percent(mean)


def bar_handles(results: RunResults, with_paper: bool = True) -> list[Any]:
    """Legend of the bars."""
    handles: list[Any] = [Patch(facecolor="#777777", label="this run")]
    if len(results.seeds) > 1:
        handles[0].set_label("this run, mean")
        look: dict[str, Any] = {"color": INK, "marker": "o", "markerfacecolor": "white", "markersize": 4}
        handles.append(Line2D([], [], **look, linewidth=1.1, label="each seed"))
    if with_paper and (rows := _first_model(results)):
        text = f"paper: mean of {rows[0].table}, {rows[0].model}, another model and scale"
        handles.append(Line2D([], [], linewidth=0, label=text))
    return handles

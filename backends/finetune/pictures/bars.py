"""Drift and advantage as bars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from backends.finetune.paper import PAPER_TABLE_7, PaperColumn
from backends.finetune.pictures.style import FAINT, INK, colour_of
from backends.finetune.results import RunResults


def drift_bars(results: RunResults) -> Figure | None:
    """Drift and advantage per condition, with the seeds; the paper's means in the labels, as their scale is another."""
    if not any(results.complete_seeds(name) for name in results.conditions):
        return None
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    drift_panel(left, results)
    advantage_panel(right, results)
    left.set_title("Drift: loss gained since a task's own phase")
    right.set_title("Advantage over FROZEN")
    figure.legend(handles=bar_handles(), loc="outside lower left", ncols=3, fontsize=9)
    figure.suptitle("Forgetting and benefit", x=0.01, ha="left")
    return figure


def drift_panel(axes: Axes, results: RunResults) -> None:
    values = {
        name: [100 * metrics.drift for seed in results.seeds if (metrics := results.metrics(name, seed))]
        for name in results.conditions
    }
    several = len(results.tasks) > 1
    paper = {name: column.drift for name, column in PAPER_TABLE_7.items()}
    empty = "no finished run yet" if several else "a single task cannot drift"
    _bars(axes, values if several else {}, paper, empty)
    axes.set_ylabel("drift (%)")


def advantage_panel(axes: Axes, results: RunResults) -> None:
    values = {
        name: [100 * gain for seed in results.seeds if (gain := results.advantage(name, seed)) is not None]
        for name in results.conditions
        if name != "frozen"
    }
    paper = {name: column.advantage for name, column in PAPER_TABLE_7.items()}
    _bars(axes, values, paper, "needs a finished FROZEN run\nof the same seed")
    axes.set_ylabel("advantage (%)")


def _bars(axes: Axes, ours: dict[str, list[float]], paper: Mapping[str, PaperColumn | None], empty: str) -> None:
    ours = {name: values for name, values in ours.items() if values}
    axes.grid(False, axis="x")
    axes.axhline(0, color=INK, linewidth=0.8)
    if not ours:
        axes.text(0.5, 0.5, empty, transform=axes.transAxes, ha="center", va="center", color=FAINT)
        axes.set(xticks=[], yticks=[])
        return
    for place, (name, values) in enumerate(ours.items()):
        _bar(axes, place, float(np.mean(values)), values, facecolor=colour_of(name))
    names = [name.upper() + _paper_mean(paper.get(name)) for name in ours]
    axes.set_xticks(range(len(ours)), names)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.6, len(ours) - 0.4)
    axes.margins(y=0.18)
    axes.spines["bottom"].set_visible(False)


def _bar(axes: Axes, place: float, mean: float, values: list[float], **style: Any) -> None:
    axes.bar([place], [mean], width=0.36, linewidth=1.2, **style)
    if len(values) > 1:
        axes.vlines(place, min(values), max(values), color=INK, linewidth=1.1)
        axes.plot([place] * len(values), values, "o", color="white", markeredgecolor=INK, markersize=3.5)
    tip = max([mean, 0.0, *values]) if mean >= 0 else min([mean, *values])
    text = "0" if mean == 0 and not any(values) else f"{mean:+.2f}" if abs(mean) < 10 else f"{mean:+.1f}"
    axes.annotate(
        text.replace("-", "−"), (place, tip), xytext=(0, 4 if mean >= 0 else -4), textcoords="offset points",
        ha="center", va="bottom" if mean >= 0 else "top", fontsize=8.5,
    )  # fmt: skip


def _paper_mean(column: PaperColumn | None) -> str:
    return "" if column is None else f"\npaper {column.mean:+.2f}".replace("-", "−")


def bar_handles() -> list[Any]:
    """Legend of the bars."""
    dots = Line2D(
        [], [], color=INK, marker="o", markerfacecolor="white", markersize=4, linewidth=1.1, label="each seed"
    )
    paper = Line2D([], [], linewidth=0, label="paper: mean of Table 7, Mistral-7B, another model and scale")
    return [Patch(facecolor="#777777", label="this run"), dots, paper]

"""The displacement budget as a trade-off: drift against advantage."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from backends.finetune.labels import budget_of, label, readable
from backends.finetune.pictures.style import INK, handle_of, mark_of
from backends.finetune.results import RunResults

Array = NDArray[np.float64]


def budget_trade_off(results: RunResults) -> Figure | None:
    """One point per budget, means over seeds with their ranges, joined in order of delta; other conditions beside."""
    points = {name: values for name in results.conditions if (values := _seeds(results, name))}
    budgets = {name: _delta(results, name) for name in points if name == "modular" or budget_of(name) is not None}
    curve = sorted((delta, name) for name, delta in budgets.items())
    if len({delta for delta, _ in curve}) < 2:
        return None
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axes = figure.subplots()
    path = np.array([np.mean(points[name], axis=0) for _, name in curve])
    axes.plot(path[:, 0], path[:, 1], color=mark_of("modular").colour, linewidth=1.2, zorder=1.5)
    below = {name for _, name in curve[1::2]}  # labels of neighbours on opposite sides of the line
    for name, values in points.items():
        _point(axes, name, np.array(values), _text(budgets.get(name)), name in below)
    axes.axhline(0, color=INK, linewidth=0.7)
    axes.axvline(0, color=INK, linewidth=0.7)
    others = {name: np.mean(values, axis=0) for name, values in points.items() if name not in budgets}
    spread = np.array([pair for _, name in curve for pair in points[name]])
    _frame(axes, others, np.vstack([spread, np.zeros((1, 2))]))
    handles = [handle_of(name, marker=True) for name in points if name in others or name == "modular"]
    for handle in handles:
        handle.set_linestyle("")
    figure.legend(handles=handles, loc="outside lower left", ncols=5, fontsize=8.5)
    axes.set_xlabel("drift (%): to the left is less forgetting")
    axes.set_ylabel("advantage over FROZEN (%): up is better")
    seeds = max(len(values) for values in points.values())
    ranges = f"; means of {seeds} seeds, lines their ranges" if seeds > 1 else ""
    figure.suptitle(f"What a displacement budget δ costs and buys{ranges}", x=0.01, ha="left")
    return figure


def _seeds(results: RunResults, name: str) -> list[tuple[float, float]]:
    """Drift and advantage in percent of every seed that has both; FROZEN's advantage over itself is 0."""
    pairs = ((results.metrics(name, seed), results.advantage(name, seed)) for seed in results.seeds)
    return [(100 * metrics.drift, 100 * gain) for metrics, gain in pairs if metrics and gain is not None]


def _delta(results: RunResults, name: str) -> float:
    own = budget_of(name)
    budget = results.run.displacement_budget if own is None else own
    return math.inf if budget is None else budget


def _text(delta: float | None) -> str:
    """Only the points of the curve are labelled; the others are in the legend."""
    if delta is None:
        return ""
    return "no budget" if math.isinf(delta) else f"δ {delta:g}"


def _point(axes: Axes, name: str, values: Array, text: str, below: bool) -> None:
    mark, (x, y) = mark_of(name), values.mean(axis=0)
    if len(values) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axes.hlines(y, low[0], high[0], color=mark.colour, linewidth=1, alpha=0.7)
        axes.vlines(x, low[1], high[1], color=mark.colour, linewidth=1, alpha=0.7)
    axes.plot(
        [x], [y], mark.marker, color=mark.colour, markersize=8 if text else 7, markeredgecolor=INK,
        markeredgewidth=0.6, zorder=3,
    )  # fmt: skip
    if text:
        axes.annotate(
            text, (x, y), xytext=(6, -14 if below else 6), textcoords="offset points", fontsize=9, weight="bold",
            zorder=4,
        )  # fmt: skip


def _frame(axes: Axes, others: dict[str, Array], curve: Array) -> None:
    """Show the curve and what lies near it; a condition far off would squeeze it, and is named instead."""
    low, high = curve.min(axis=0), curve.max(axis=0)
    span = np.maximum(high - low, 1e-3)
    near = [p for p in others.values() if (p >= low - 0.6 * span).all() and (p <= high + 0.6 * span).all()]
    shown = np.vstack([curve, *near])
    low, high = shown.min(axis=0), shown.max(axis=0)
    span = np.maximum(high - low, 1e-3)
    axes.set_xlim(low[0] - 0.06 * span[0], high[0] + 0.16 * span[0])
    axes.set_ylim(low[1] - 0.08 * span[1], high[1] + 0.12 * span[1])
    far = [
        f"{label(readable(name), 24)} (drift {x:+.1f}, advantage {y:+.1f})"
        for name, (x, y) in others.items()
        if not (low[0] <= x <= high[0] and low[1] <= y <= high[1])
    ]
    if far:
        text = "outside:\n" + "\n".join(far).replace("-", "−")
        axes.text(0.99, 0.98, text, transform=axes.transAxes, ha="right", va="top", fontsize=8, color="#555555")

"""The displacement budget as a trade-off: drift against advantage."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from backends.finetune.report.labels import budget_of, label, percent, readable
from backends.finetune.report.pictures import style
from backends.finetune.report.pictures.placement import place_labels
from backends.finetune.report.pictures.style import Array
from backends.finetune.runs.results import RunResults


def budget_trade_off(results: RunResults) -> Figure | None:
    """One point per budget, means over seeds with their ranges, joined in order of delta; other conditions beside."""
    points = {name: values for name in results.conditions if (values := _seeds(results, name))}
    budgets = {
        name: style.budget_in(results, name) for name in points if name == "modular" or budget_of(name) is not None
    }
    curve = sorted((delta, name) for name, delta in budgets.items() if delta is not None)
    if len({delta for delta, _ in curve}) < 2:
        return None
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axes = figure.subplots()
    path = np.array([np.mean(points[name], axis=0) for _, name in curve])
    axes.plot(path[:, 0], path[:, 1], color=style.mark_of("modular").colour, linewidth=1.2, zorder=1.5)
    for name, values in points.items():
        _point(axes, name, np.array(values), large=name in budgets)
    axes.axhline(0, color=style.INK, linewidth=0.7)
    axes.axvline(0, color=style.INK, linewidth=0.7)
    others = {name: np.mean(values, axis=0) for name, values in points.items() if name not in budgets}
    spread = np.array([pair for _, name in curve for pair in points[name]])
    outside = _frame(axes, others, np.vstack([spread, np.zeros((1, 2))]))
    if outside:
        axes.set_title(_outside_text(outside), fontsize=8, fontweight="normal", color="#555555")
    inside = [name for name in others if name not in outside]
    handles = [style.handle_of(name, marker=True) for name in points if name in inside or name == "modular"]
    for handle in handles:
        handle.set_linestyle("")
    style.legend_below(figure, handles)
    axes.set_xlabel("drift (%): to the left is less forgetting")
    axes.set_ylabel("advantage over FROZEN (%): up is better")
    seeds = max(len(values) for values in points.values())
    ranges = f"; means of {seeds} seeds, lines their ranges" if seeds > 1 else ""
    style.heading(figure, f"What a displacement budget δ costs and buys{ranges}")
    means = {name: (float(x), float(y)) for name, (x, y) in ((n, np.mean(v, axis=0)) for n, v in points.items())}
    # Only the points of the curve are labelled; the others are in the legend.
    labels = [("no budget" if math.isinf(delta) else f"δ {delta:g}", means[name]) for delta, name in curve]
    place_labels(figure, axes, labels, [mean for name, mean in means.items() if name not in outside])
    return figure


BUDGET = style.Picture(
    "budget.png",
    budget_trade_off,
    "Each point on the line is MODULAR with another displacement budget: how far the shared adapter may "
    "move from its state after the first task. The best corner is the upper left. The other conditions are for "
    "reference.",
)


def _seeds(results: RunResults, name: str) -> list[tuple[float, float]]:
    """Drift and advantage in percent of every seed that has both; FROZEN's advantage over itself is 0."""
    pairs = ((results.metrics(name, seed), results.advantage(name, seed)) for seed in results.seeds)
    return [(100 * metrics.drift, 100 * gain) for metrics, gain in pairs if metrics and gain is not None]


def _point(axes: Axes, name: str, values: Array, large: bool) -> None:
    mark, (x, y) = style.mark_of(name), values.mean(axis=0)
    if len(values) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axes.hlines(y, low[0], high[0], color=mark.colour, linewidth=1, alpha=0.7)
        axes.vlines(x, low[1], high[1], color=mark.colour, linewidth=1, alpha=0.7)
    axes.plot(
        [x], [y], mark.marker, color=mark.colour, markersize=8 if large else 7, markeredgecolor=style.INK,
        markeredgewidth=0.6, zorder=3,
    )  # fmt: skip


def _frame(axes: Axes, others: dict[str, Array], curve: Array) -> dict[str, Array]:
    """Show the curve and what lies near it; return the conditions far off, which would squeeze it."""
    low, high = curve.min(axis=0), curve.max(axis=0)
    span = np.maximum(high - low, 1e-3)
    near = [p for p in others.values() if (p >= low - 0.6 * span).all() and (p <= high + 0.6 * span).all()]
    shown = np.vstack([curve, *near])
    low, high = shown.min(axis=0), shown.max(axis=0)
    span = np.maximum(high - low, 1e-3)
    axes.set_xlim(low[0] - 0.06 * span[0], high[0] + 0.16 * span[0])
    axes.set_ylim(low[1] - 0.08 * span[1], high[1] + 0.12 * span[1])
    return {name: p for name, p in others.items() if not ((low <= p) & (p <= high)).all()}


def _outside_text(outside: dict[str, Array]) -> str:
    """Two conditions a line."""
    names = [
        f"{label(readable(name), 24)} (drift {percent(x)}, advantage {percent(y)})" for name, (x, y) in outside.items()
    ]
    lines = [";  ".join(names[start : start + 2]) for start in range(0, len(names), 2)]
    return "outside the frame:  " + ";\n".join(lines)

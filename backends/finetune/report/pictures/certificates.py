"""Spectral norm, singular values and displacement over the steps of a run."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from backends.certificate import ROUNDING
from backends.finetune.report.labels import readable
from backends.finetune.report.pictures import style
from backends.finetune.report.pictures.style import Array
from backends.finetune.runs.records import PhaseRecord, SpectralLog
from backends.finetune.runs.results import RunResults

Log = tuple[str, Array, SpectralLog]
SMALLEST = (0, (3, 1))  # the line of the smallest over the layers
SEEN = (0, (5, 1, 1, 1))  # and of the largest data displacement
UNBOUNDED, STILL = "modular-unconstrained", "modular-still"


def spectral_norm(results: RunResults) -> Figure | None:
    """Extreme deviations of the spectral norm of M from 1 over the layers; extreme singular values of the adapter."""
    logs = list(_spectral_logs(results))
    if not logs:
        return None
    figure = Figure(figsize=(10, 6.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    _norms(upper, [entry for entry in logs if entry[0] != UNBOUNDED])
    free = [max(log.norm_max) for name, _, log in logs if name == UNBOUNDED]
    text = "Mixing matrix M: extreme spectral norms over the layers"
    upper.set_title(text + (f" ({readable(UNBOUNDED)}, not shown, reaches {max(free):.3g})" if free else ""))
    for name, positions, log in logs:
        colour = style.mark_of(name).colour
        lower.plot(positions, log.adapter_max, color=colour, linewidth=1.3)
        lower.plot(positions, log.adapter_min, color=colour, linewidth=1.3, linestyle=SMALLEST)
    lower.set_ylabel("singular value (no unit)")
    lower.set_title("Whole adapter: extreme singular values over the layers")
    for axes in (upper, lower):
        style.phase_axis(axes, results)
    upper.tick_params(labelbottom=False)
    upper.set_xlabel("")
    _legend(figure, logs, _kinds())
    style.heading(figure, "Spectral certificates")
    return figure


SPECTRAL_NORM = style.Picture(
    "spectral_norm.png",
    spectral_norm,
    "Top: the extreme layers' spectral norms of the mixing matrix, minus 1; only float32 rounding "
    "should be seen, below the dashed bound of 5e-7. Bottom: the whole adapter's largest singular value must not "
    "exceed 1; the smallest says how much of some direction the worst layer removes.",
)


def _norms(axes: Axes, logs: list[Log]) -> None:
    worst = -np.inf
    for name, positions, log in logs:
        mark = style.mark_of(name)
        for norms in filter(None, (log.norm_max, log.norm_min)):
            deviation = (np.array(norms, dtype=np.float64) - 1) * 1e7
            look: dict[str, Any] = {"color": mark.colour, "markersize": 4, "alpha": 0.5, "markeredgewidth": 0}
            axes.plot(positions, deviation, mark.marker, **look, clip_on=False)
        worst = max(worst, (max(log.norm_max) - 1) * 1e7)
    axes.axhline(ROUNDING * 1e7, color=style.BOUND, linewidth=1.2, linestyle="--")
    measured = f"; largest measured {worst:.1f} × 10⁻⁷" if logs else ""
    text = f"bound {ROUNDING * 1e7:g} × 10⁻⁷{measured}".replace("-", "−")
    style.note(axes, text, (1, ROUNDING * 1e7), (-4, -4), ha="right", va="top", color=style.BOUND, fontsize=9)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -1), max(high, 5.6))
    axes.set_ylabel("‖M‖₂ − 1, in units of 10⁻⁷")


def displacement_over_steps(results: RunResults) -> Figure | None:
    """How far the shared adapter has moved from its anchor: the largest and smallest distance over the layers."""
    logs = [entry for entry in _spectral_logs(results) if any(v is not None for v in entry[2].displacement_max)]
    moving = [entry for entry in logs if entry[0] != STILL]  # whose distance is rounding, and no log axis has a 0
    if not moving:
        return None
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    reached: list[float] = []
    for name, positions, log in moving:
        mark = style.mark_of(name)
        lines = ((log.displacement_max, "-"), (log.displacement_min, SMALLEST), (log.data_displacement_max, SEEN))
        for values, line in lines:
            if all(value is None for value in values):
                continue
            distances = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
            axes.plot(positions, distances, color=mark.colour, linewidth=1.6, linestyle=line)
            reached += [float(value) for value in distances if value > 0]
    budgets = {(style.budget_in(results, name), "δ") for name, _, _ in moving}
    budgets |= {(style.data_budget_in(results, name), "ε") for name, _, log in moving if any(log.data_displacement_max)}
    known = sorted((budget, sign) for budget, sign in budgets if budget is not None and math.isfinite(budget))
    for budget, _ in known:
        axes.axhline(budget, color=style.BOUND, linewidth=1.0, linestyle=":", zorder=1.5)
    reached += [budget for budget, _ in known]
    if reached and max(reached) > 12 * min(reached):
        axes.set_yscale("log")
        style.logarithmic(axes.yaxis)
        axes.set_ylim(min(reached) / 1.5, max(reached) * 1.5)
    else:
        axes.set_ylim(0, 1.15 * max([*reached, 1e-12]))
    _name_budgets(axes, known)
    axes.set_ylabel("displacement\n(spectral norm, no unit)")
    style.phase_axis(axes, results)
    kinds = _kinds() if any(any(log.displacement_min) for _, _, log in moving) else []
    if any(any(log.data_displacement_max) for _, _, log in moving):
        kinds.append(Line2D([], [], color=style.INK, linewidth=1.4, linestyle=SEEN, label="what earlier tasks see"))
    _legend(figure, moving, kinds)
    text = "Displacement of CRMA from its anchor: extremes over the layers"
    text += f" ({readable(STILL)}: none)" if len(moving) < len(logs) else ""
    style.heading(figure, text)
    return figure


DISPLACEMENT = style.Picture(
    "displacement.png",
    displacement_over_steps,
    "The spectral norm of the difference between the adapter now and its anchor, in the layers "
    "that moved furthest and least: no hidden vector there has changed by more than this times its length. No line: "
    "no anchor yet. With a data budget also the largest root mean square of what earlier tasks' tokens see. Dotted: "
    "the budgets.",
)


def _name_budgets(axes: Axes, budgets: list[tuple[float, str]]) -> None:
    """On their lines, in the first phase, which has no anchor yet; neighbours side by side."""
    for place, (budget, sign) in enumerate(budgets):
        at = (0.01 + 0.09 * (place % 2), budget)
        style.note(axes, f"{sign} = {budget:g}", at, (0, 1), va="bottom", color=style.BOUND, fontsize=8.5)


def _kinds() -> list[Line2D]:
    ink: dict[str, Any] = {"color": style.INK, "linewidth": 1.4}
    return [Line2D([], [], **ink, label="largest"), Line2D([], [], **ink, linestyle=SMALLEST, label="smallest")]


def _legend(figure: Figure, logs: list[Log], more: list[Any]) -> None:
    names = list(dict.fromkeys(name for name, _, _ in logs))
    style.legend_below(figure, [*more, *(style.handle_of(name, marker=True) for name in names)])


def _spectral_logs(results: RunResults) -> Iterator[Log]:
    """(condition, x positions, log): the phases of one condition and seed joined to one line."""
    for name in results.conditions:
        for seed in results.seeds:
            records = [r for r in results.phases_of(name, seed) if r.spectral and r.spectral.steps]
            if records:
                yield name, *_joined(records)


def _joined(records: list[PhaseRecord]) -> tuple[Array, SpectralLog]:
    places: list[float] = []
    fields: dict[str, Any] = {name: [] for name in SpectralLog.model_fields}
    for record in records:
        assert record.spectral is not None
        places += [record.phase + step / max(1, len(record.losses)) for step in record.spectral.steps]
        for name, values in fields.items():
            values += getattr(record.spectral, name) or [None] * len(record.spectral.steps)  # of an earlier version
    return np.array(places), SpectralLog.model_construct(**fields)

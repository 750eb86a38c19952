"""Spectral norm, singular values and displacement over the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from backends.certificate import ROUNDING
from backends.finetune.labels import budget_of, readable
from backends.finetune.pictures.style import BOUND, INK, handle_of, logarithmic, mark_of, phase_axis
from backends.finetune.records import PhaseRecord, SpectralLog
from backends.finetune.results import RunResults

Array = NDArray[np.float64]
Log = tuple[str, Array, SpectralLog]
UNBOUNDED = "modular-unconstrained"


def spectral_norm(results: RunResults) -> Figure | None:
    """Largest deviation of the spectral norm of M from 1 over the layers, and the adapter's extreme singular values."""
    logs = list(_spectral_logs(results))
    if not logs:
        return None
    figure = Figure(figsize=(10, 6.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    _norms(upper, [entry for entry in logs if entry[0] != UNBOUNDED])
    free = [max(log.norm_max) for name, _, log in logs if name == UNBOUNDED]
    text = "Mixing matrix M: largest spectral norm over the layers"
    upper.set_title(text + (f" ({readable(UNBOUNDED)}, not shown, reaches {max(free):.3g})" if free else ""))
    for name, positions, log in logs:
        colour = mark_of(name).colour
        lower.plot(positions, log.adapter_max, color=colour, linewidth=1.3)
        lower.plot(positions, log.adapter_min, color=colour, linewidth=1.3, linestyle=(0, (3, 1)))
    lower.set_ylabel("singular value (no unit)")
    lower.set_title("Whole adapter: extreme singular values over the layers")
    ink: dict[str, Any] = {"color": INK, "linewidth": 1.4}
    kinds = [Line2D([], [], **ink, label="largest"), Line2D([], [], **ink, linestyle=(0, (3, 1)), label="smallest")]
    for axes in (upper, lower):
        phase_axis(axes, results)
    upper.tick_params(labelbottom=False)
    upper.set_xlabel("")
    _legend(figure, logs, kinds)
    figure.suptitle("Spectral certificates", x=0.01, ha="left")
    return figure


def _norms(axes: Axes, logs: list[Log]) -> None:
    worst = -np.inf
    for name, positions, log in logs:
        mark = mark_of(name)
        deviation = (np.array(log.norm_max) - 1) * 1e7
        axes.plot(
            positions, deviation, mark.marker, color=mark.colour, markersize=4, alpha=0.5, markeredgewidth=0,
            clip_on=False,
        )  # fmt: skip
        worst = max(worst, float(deviation.max()))
    axes.axhline(ROUNDING * 1e7, color=BOUND, linewidth=1.2, linestyle="--")
    measured = f"; largest measured {worst:.1f} × 10⁻⁷" if logs else ""
    axes.annotate(
        f"bound {ROUNDING * 1e7:g} × 10⁻⁷{measured}".replace("-", "−"),
        (1, ROUNDING * 1e7), xycoords=("axes fraction", "data"), xytext=(-4, -4), textcoords="offset points",
        ha="right", va="top", color=BOUND, fontsize=9,
    )  # fmt: skip
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -1), max(high, 5.6))
    axes.set_ylabel("‖M‖₂ − 1, in units of 10⁻⁷")


def displacement_over_steps(results: RunResults) -> Figure | None:
    """How far the shared adapter has moved from its anchor: the largest distance over the layers."""
    logs = [entry for entry in _spectral_logs(results) if any(v is not None for v in entry[2].displacement_max)]
    if not logs:
        return None
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots()
    largest: list[float] = []
    for name, positions, log in logs:
        values = np.array([np.nan if value is None else value for value in log.displacement_max], dtype=np.float64)
        axes.plot(positions, values, color=mark_of(name).colour, linewidth=2, linestyle=mark_of(name).line)
        largest.append(float(np.nanmax(values)))
    budgets = {_budget(results, name) for name, _, _ in logs}
    known = sorted(budget for budget in budgets if budget is not None and math.isfinite(budget))
    for budget in known:
        axes.axhline(budget, color=BOUND, linewidth=1.0, linestyle="--", zorder=1.5)
        axes.annotate(
            f"budget δ = {budget:g}", (0, budget), xycoords=("axes fraction", "data"), xytext=(4, 2),
            textcoords="offset points", va="bottom", color=BOUND, fontsize=8.5,
        )  # fmt: skip
    reached = [value for value in [*largest, *known] if value > 0]
    if reached and max(reached) > 12 * min(reached):
        axes.set_yscale("log")
        logarithmic(axes.yaxis)
        axes.set_ylim(min(reached) / 4, max(reached) * 1.8)
    else:
        axes.set_ylim(0, 1.15 * max([*reached, 1e-12]))
    axes.set_ylabel("displacement\n(spectral norm, no unit)")
    phase_axis(axes, results)
    _legend(figure, logs, [])
    figure.suptitle("Displacement of the shared adapter from its anchor, largest over the layers", x=0.01, ha="left")
    return figure


def _budget(results: RunResults, condition: str) -> float | None:
    """None: no budget holds, so no line is drawn."""
    if condition in (UNBOUNDED, "modular-still"):
        return None
    own = budget_of(condition)
    return results.run.displacement_budget if own is None else own


def _legend(figure: Figure, logs: list[Log], more: list[Any]) -> None:
    names = list(dict.fromkeys(name for name, _, _ in logs))
    handles = [*more, *(handle_of(name, marker=True) for name in names)]
    figure.legend(handles=handles, loc="outside lower left", ncols=5, fontsize=8.5)


def _spectral_logs(results: RunResults) -> Iterator[Log]:
    """(condition, x positions, log): the phases of one condition and seed joined to one line."""
    for name in results.conditions:
        for seed in results.seeds:
            records = [r for r in results.phases_of(name, seed) if r.spectral and r.spectral.steps]
            if records:
                yield name, np.concatenate([_positions(record) for record in records]), _joined(records)


def _positions(record: PhaseRecord) -> Array:
    steps = record.spectral.steps if record.spectral else []
    return record.phase + np.array(steps, dtype=np.float64) / max(1, len(record.losses))


def _joined(records: list[PhaseRecord]) -> SpectralLog:
    logs = [record.spectral for record in records if record.spectral]
    fields: dict[str, Any] = {
        name: [value for log in logs for value in getattr(log, name)] for name in SpectralLog.model_fields
    }
    return SpectralLog.model_construct(**fields)

"""Spectral norm, singular values and displacement over the steps of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from backends.finetune.pictures.style import INK, colour_of, phase_axis
from backends.finetune.results import PhaseRecord, RunResults, SpectralLog

Array = NDArray[np.float64]
NORM_BOUND = 5e-7  # SINK-6: float32 rounding above 1


def spectral_norm(results: RunResults) -> Figure | None:
    """Largest deviation of the spectral norm of M from 1 over the layers, and the adapter's extreme singular values."""
    logs = list(_spectral_logs(results))
    if not logs:
        return None
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    worst = -np.inf
    for name, positions, log in logs:
        colour = colour_of(name)
        deviation = (np.array(log.norm_max) - 1) * 1e7
        upper.plot(positions, deviation, "o", color=colour, markersize=4, alpha=0.45, markeredgewidth=0, clip_on=False)
        worst = max(worst, float(deviation.max()))
        lower.plot(positions, log.adapter_max, color=colour, linewidth=1.4)
        lower.plot(positions, log.adapter_min, color=colour, linewidth=1.4, linestyle=(0, (3, 1)))
    upper.axhline(NORM_BOUND * 1e7, color="#b00020", linewidth=1.2, linestyle="--")
    upper.annotate(
        f"bound {NORM_BOUND * 1e7:g} × 10⁻⁷; largest measured {worst:.1f} × 10⁻⁷".replace("-", "−"),
        (1, NORM_BOUND * 1e7), xycoords=("axes fraction", "data"), xytext=(-4, -4), textcoords="offset points",
        ha="right", va="top", color="#b00020", fontsize=9,
    )  # fmt: skip
    low, high = upper.get_ylim()
    upper.set_ylim(min(low, -1), max(high, 5.6))
    upper.set_ylabel("‖M‖₂ − 1, in units of 10⁻⁷")
    upper.set_title("Mixing matrix M: largest spectral norm over the layers")
    lower.set_ylabel("singular value (no unit)")
    lower.set_title("Whole adapter: extreme singular values over the layers")
    ink: dict[str, Any] = {"color": INK, "linewidth": 1.4}
    kinds = [Line2D([], [], **ink, label="largest"), Line2D([], [], **ink, linestyle=(0, (3, 1)), label="smallest")]
    lower.legend(handles=kinds, loc="center right", fontsize=9)
    for axes in (upper, lower):
        phase_axis(axes, results)
    upper.tick_params(labelbottom=False)
    upper.set_xlabel("")
    figure.suptitle(f"Spectral certificates of {_names(logs)}", x=0.01, ha="left")
    return figure


def displacement_over_steps(results: RunResults) -> Figure | None:
    """How far the shared adapter has moved from its anchor: the largest distance over the layers."""
    logs = [entry for entry in _spectral_logs(results) if any(v is not None for v in entry[2].displacement_max)]
    if not logs:
        return None
    figure = Figure(figsize=(10, 3.7), layout="constrained")
    axes = figure.subplots()
    for name, positions, log in logs:
        values = np.array([np.nan if value is None else value for value in log.displacement_max], dtype=np.float64)
        axes.plot(positions, values, color=colour_of(name), linewidth=1.5)
    if results.run.displacement_budget is not None:
        axes.axhline(results.run.displacement_budget, color="#b00020", linewidth=1.2, linestyle="--")
        axes.annotate(
            f"budget δ = {results.run.displacement_budget:g}", (0, results.run.displacement_budget),
            xycoords=("axes fraction", "data"), xytext=(4, -4), textcoords="offset points", va="top",
            color="#b00020", fontsize=9,
        )  # fmt: skip
    axes.set_ylim(bottom=0, top=max(axes.get_ylim()[1], 1.08 * (results.run.displacement_budget or 0)))
    axes.set_ylabel("displacement\n(spectral norm, no unit)")
    phase_axis(axes, results)
    figure.suptitle(f"Displacement of the shared adapter from its anchor, {_names(logs)}", x=0.01, ha="left")
    return figure


def _spectral_logs(results: RunResults) -> Iterator[tuple[str, Array, SpectralLog]]:
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


def _names(logs: list[tuple[str, Array, SpectralLog]]) -> str:
    return ", ".join(dict.fromkeys(name.upper() for name, _, _ in logs))

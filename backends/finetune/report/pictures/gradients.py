"""Gradient norms of LoRA, with and without the shared CRMA."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from backends.finetune.report.pictures import style
from backends.finetune.report.pictures.style import Array
from backends.finetune.runs.results import RunResults


def gradient_norms(results: RunResults) -> Figure | None:
    """Norm of the gradient of LoRA's parameters before clipping: MODULAR beside FROZEN, and their ratio per phase."""
    shown = [name for name in ("frozen", "modular") if name in results.conditions and _curves(results, name, 0)]
    if not shown:
        return None
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    axes = figure.subplots()
    for name in shown:
        _draw(axes, results, name)
    axes.set_yscale("log")
    style.logarithmic(axes.yaxis)
    axes.set_ylabel("gradient norm of LoRA\nbefore clipping (nats)")
    style.phase_axis(axes, results)
    handles = [style.handle_of(name) for name in shown]
    for handle, name in zip(handles, shown, strict=True):
        handle.set_label(f"{handle.get_label()}, {'with' if name == 'modular' else 'without'} CRMA")
    axes.legend(handles=handles, loc="upper right", ncols=2, fontsize=9)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.12)
    clip = _clip(results)
    if clip is not None and low < clip < high:
        axes.axhline(clip, color="#999999", linewidth=0.9, linestyle=":")
        box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}
        style.note(
            axes, f"clipped to {clip:g}", (1, clip), (-3, 2), ha="right", color="#444444", fontsize=8.5, bbox=box
        )
    ratio = _median_ratio(results) if len(shown) == 2 else None
    title = "" if ratio is None else f": with CRMA {ratio:.2f} times as large in the median"
    style.heading(figure, f"Gradient norm of LoRA{title}")
    return figure


GRADIENT_NORMS = style.Picture(
    "gradient_norms.png",
    gradient_norms,
    "Norm of the gradient of all of LoRA's parameters in each optimizer step, before clipping. "
    "With several seeds the line is their median and the band their range.",
)


def _curves(results: RunResults, condition: str, phase: int) -> list[list[float]]:
    reached = [record for seed in results.seeds for record in results.phases_of(condition, seed)[phase : phase + 1]]
    return [norms for record in reached if (norms := record.gradient_norms.get("lora"))]


def _draw(axes: Axes, results: RunResults, condition: str) -> None:
    """Per phase the median over seeds, smoothed a little, and the range of the raw values."""
    mark = style.mark_of(condition)
    for phase in range(len(results.tasks)):
        curves = _curves(results, condition, phase)
        steps = min((len(curve) for curve in curves), default=0)
        if not steps:
            continue
        values = np.maximum(np.array([curve[:steps] for curve in curves]), 1e-12)
        places = phase + (np.arange(steps) + 0.5) / steps
        axes.plot(places, np.median(values, axis=0), color=mark.colour, linestyle=mark.line, linewidth=1.4)
        style.band(axes, places, values, mark.colour)


def _median_ratio(results: RunResults) -> float | None:
    """Over all steps that both took with the same seed."""
    ratios: list[Array] = []
    for seed in results.seeds:
        for one, other in zip(results.phases_of("modular", seed), results.phases_of("frozen", seed), strict=False):
            pair = (one.gradient_norms.get("lora", []), other.gradient_norms.get("lora", []))
            steps = min(map(len, pair))
            crma, plain = (np.array(norms[:steps]) for norms in pair)
            ratios.append(crma[plain > 0] / plain[plain > 0])
    everything = np.concatenate(ratios) if ratios else np.array([])
    return float(np.median(everything)) if everything.size else None


def _clip(results: RunResults) -> float | None:
    section = results.run.config.get("lora")
    clip = section.get("clip") if isinstance(section, dict) else None
    return float(clip) if isinstance(clip, (int, float)) else None

"""Training and holdout loss over the phases."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from backends.finetune.report.labels import label, readable
from backends.finetune.report.pictures import style
from backends.finetune.report.pictures.style import Array
from backends.finetune.runs.results import RunResults


def loss_over_phases(results: RunResults) -> Figure | None:
    """Training loss, smoothed, over the phases; below it each task's holdout loss from its own phase on."""
    if not results.phases:
        return None
    shown = style.main_and_rest(_begun(results))[0]
    count = len(results.tasks)
    columns = min(count, 6)
    rows = -(-count // columns)
    figure = Figure(figsize=(10, 4.0 + 1.9 * rows), layout="constrained")
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[1.75] + [1.0] * rows)
    top = figure.add_subplot(grid[0, :])
    for name in shown:
        _training_loss(top, results, name)
    style.phase_axis(top, results)
    top.set_ylabel("training loss\n(nats per answer token)")
    top.set_title("Training loss in the order of the phases (smoothed)")
    handles = [style.handle_of(name) for name in shown]
    top.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 1), ncols=4, fontsize=9)
    low, high = top.get_ylim()
    top.set_ylim(low, high + 0.12 * (high - low))
    panels: list[Axes] = []
    for index, task in enumerate(style.task_labels(results, 16 if columns <= 5 else 13)):
        axes = figure.add_subplot(grid[1 + index // columns, index % columns])
        for name in shown:
            _holdout_path(axes, results, name, index)
        axes.set_title(task, fontsize=9.5)
        axes.set_xlim(0.7 - 0.04 * count, count + 0.3 + 0.04 * count)
        panels.append(axes)
        axes.set_xticks(range(1, count + 1) if count <= 6 else range(1, count + 1, 3))
        axes.tick_params(labelsize=8)
        if index % columns == 0:
            axes.set_ylabel("holdout loss\n(nats per token)", fontsize=9)
        if index >= count - columns:
            axes.set_xlabel("after phase", fontsize=9)
    _same_span(panels)
    style.heading(figure, "Loss over the phases")
    return figure


LOSS = style.Picture(
    "loss.png",
    loss_over_phases,
    "Top: training loss, a moving average over an eighth of a phase; it jumps where a new task starts. "
    "Below: the holdout loss of each task from its own phase on; a flat line means that nothing was forgotten. With "
    "several seeds the line is their mean and the band their range.",
)


def more_losses(results: RunResults) -> Figure | None:
    """The conditions that the large picture leaves out: each one's training loss, beside FROZEN's in grey."""
    shown = style.main_and_rest(_begun(results))[1]
    if not shown:
        return None
    columns = 4
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(10, 0.9 + 1.75 * rows), layout="constrained")
    axes_of = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for index, axes in enumerate(axes_of.flat):
        if index >= len(shown):
            axes.set_axis_off()
            continue
        if "frozen" in results.conditions:
            _training_loss(axes, results, "frozen", colour="#bdbdbd")
        _training_loss(axes, results, shown[index])
        style.phase_axis(axes, results, short=True)
        axes.set_title(label(readable(shown[index]), 24), color=style.mark_of(shown[index]).colour, fontsize=9)
        axes.tick_params(labelsize=8, labelbottom=True)
        axes.set_xlabel("phase" if index + columns >= len(shown) else "", fontsize=9)
        if index % columns == 0:
            axes.set_ylabel("training loss\n(nats per token)", fontsize=9)
    style.heading(figure, "Training loss of the other conditions (grey: FROZEN)")
    return figure


MORE_LOSSES = style.Picture(
    "loss_more.png",
    more_losses,
    "Training loss of the other conditions, smoothed in the same way.",
)


def _begun(results: RunResults) -> list[str]:
    return [name for name in results.conditions if any(results.phases_of(name, seed) for seed in results.seeds)]


def _training_loss(axes: Axes, results: RunResults, condition: str, colour: str | None = None) -> None:
    """Mean over the seeds that reached a phase, and the range of their smoothed losses."""
    mark = style.mark_of(condition)
    colour = colour or mark.colour
    for phase in range(len(results.tasks)):
        reached = [record for seed in results.seeds for record in results.phases_of(condition, seed)[phase : phase + 1]]
        curves = [_smoothed(record.losses) for record in reached if record.losses]
        if not curves:
            continue
        positions = np.linspace(0, 1, 200)
        stacked = np.stack([np.interp(positions, (np.arange(len(c)) + 0.5) / len(c), c) for c in curves])
        axes.plot(phase + positions, stacked.mean(axis=0), color=colour, linestyle=mark.line, linewidth=1.6)
        style.band(axes, phase + positions, stacked, colour)


def _smoothed(losses: list[float]) -> Array:
    """Centred moving average over an eighth of the phase; shorter windows at its ends."""
    window = np.ones(max(1, len(losses) // 8))
    values = np.asarray(losses, dtype=np.float64)
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


def _holdout_path(axes: Axes, results: RunResults, condition: str, task: int) -> None:
    paths = np.array([results.holdout_matrix(condition, seed)[task:, task] for seed in results.seeds])
    reached = np.isfinite(paths).all(axis=0) if results.complete_seeds(condition) == list(results.seeds) else None
    if reached is None:  # an unfinished condition: the mean over seeds would mix different sets of seeds
        paths = paths[[np.isfinite(path).any() for path in paths]]
    phases = np.arange(task + 1, len(results.tasks) + 1)
    mark = style.mark_of(condition)
    look: dict[str, Any] = {"color": mark.colour, "marker": mark.marker, "markersize": 4}
    for path in paths if reached is None or len(paths) == 1 else [paths.mean(axis=0)]:
        axes.plot(phases, path, linestyle=mark.line, linewidth=1.3, **look)
    if reached is not None and len(paths) > 1:
        axes.vlines(phases, paths.min(axis=0), paths.max(axis=0), color=mark.colour, alpha=0.35, linewidth=1.2)
        style.band(axes, phases, paths, mark.colour)


def _same_span(panels: list[Axes]) -> None:
    """Give every panel the same height in nats, so that slopes compare and a tiny change looks tiny."""
    limits = [axes.get_ylim() for axes in panels]
    half = max(high - low for low, high in limits) / 2
    for axes, (low, high) in zip(panels, limits, strict=True):
        axes.set_ylim((low + high) / 2 - half, (low + high) / 2 + half)

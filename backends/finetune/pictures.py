"""The pictures of a run, as PNG bytes: drawn on Figure objects, without pyplot and so without global state."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from backends.finetune.results import PAPER_TABLE_7, PaperColumn, PhaseRecord, RunResults, SpectralLog

Array = NDArray[np.float64]
NORM_BOUND = 5e-7  # SINK-6: float32 rounding above 1

# Okabe and Ito's palette; line style and marker tell the conditions apart without colour.
_COLOURS = {"naive": "#D55E00", "frozen": "#0072B2", "modular": "#009E73"}
_SPARE_COLOURS = ("#CC79A7", "#E69F00", "#56B4E9", "#555555")
_LINES: dict[str, Any] = {"naive": "-.", "frozen": (0, (4, 1.5)), "modular": "-"}
_MARKERS = {"naive": "o", "frozen": "s", "modular": "D"}
_INK, _FAINT = "#222222", "#8a8a8a"
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 10.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK, "text.color": _INK, "xtick.color": _INK, "ytick.color": _INK, "axes.grid": True,
    "grid.color": "#e4e4e4", "grid.linewidth": 0.7, "axes.axisbelow": True, "legend.frameon": False,
    "lines.linewidth": 1.8, "hatch.linewidth": 0.8, "text.parse_math": False, "axes.formatter.useoffset": False,
    "xtick.labelsize": 9, "ytick.labelsize": 9, "figure.titlesize": 12.5, "figure.titleweight": "bold",
}  # fmt: skip


def draw_pictures(results: RunResults) -> dict[str, bytes]:
    """File name -> PNG, 1500 pixels wide, for every picture that ``results`` has data for."""
    painters: dict[str, Callable[[RunResults], Figure | None]] = {
        "overview.png": overview,
        "holdout.png": holdout_heat_map,
        "loss.png": loss_over_phases,
        "drift.png": drift_bars,
        "spectral_norm.png": spectral_norm,
        "displacement.png": displacement_over_steps,
    }
    drawn = {}
    # Names come from users: no mathematics in them, and a glyph the font lacks is drawn as a box, without a warning.
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        for name, paint in painters.items():
            if (figure := paint(results)) is not None:
                buffer = io.BytesIO()
                FigureCanvasAgg(figure)
                figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
                drawn[name] = buffer.getvalue()
    return drawn


def holdout_heat_map(results: RunResults) -> Figure | None:
    """One panel per condition: holdout loss in nats as numbers, its change since the task's own phase as colour."""
    shown = [name for name in results.conditions if _matrix(results, name)]
    if not shown:
        return None
    count = len(results.tasks)
    columns = min(len(shown), 3 if count <= 5 else 2 if count <= 8 else 1)
    rows = -(-len(shown) // columns)
    height = 10 / columns * (0.86 if columns > 1 else 0.5) if count > 2 else 3.0
    figure = Figure(figsize=(10, 1.15 + height * rows), layout="constrained")
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[height] * rows + [0.12])
    norm = _change_norm(results, shown)
    for index, name in enumerate(shown):
        axes = figure.add_subplot(grid[index // columns, index % columns])
        first_column = index % columns == 0
        _heat(axes, results, name, norm, size=9 if count <= 12 else 7 if count <= 18 else 0)
        axes.set_xlabel("holdout task")
        if first_column:
            axes.set_ylabel("measured after training on")
        elif columns > 1:
            axes.set_yticklabels([])
    text = "change since the task's own phase, %   (orange: forgotten, purple: improved)"
    _colour_bar(figure, figure.add_subplot(grid[rows, :]), norm, text)
    figure.suptitle(
        "Holdout loss after each phase, nats per answer token (bold: the task's own phase)", x=0.01, ha="left"
    )
    return figure


def loss_over_phases(results: RunResults) -> Figure | None:
    """Training loss, smoothed, over the phases; below it each task's holdout loss from its own phase on."""
    if not results.phases:
        return None
    count = len(results.tasks)
    columns = min(count, 6)
    rows = -(-count // columns)
    figure = Figure(figsize=(10, 4.0 + 1.9 * rows), layout="constrained")
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[1.75] + [1.0] * rows)
    top = figure.add_subplot(grid[0, :])
    for name in results.conditions:
        _training_loss(top, results, name)
    _phase_axis(top, results)
    top.set_ylabel("training loss\n(nats per answer token)")
    top.set_title("Training loss in the order of the phases (smoothed)")
    handles = [_handle(name) for name in results.conditions if any(results.phases_of(name, s) for s in results.seeds)]
    top.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 1), ncols=4, fontsize=9)
    low, high = top.get_ylim()
    top.set_ylim(low, high + 0.12 * (high - low))
    panels: list[Axes] = []
    for index, task in enumerate(results.tasks):
        axes = figure.add_subplot(grid[1 + index // columns, index % columns])
        for name in results.conditions:
            _holdout_path(axes, results, name, index)
        axes.set_title(label(task, 16 if columns <= 5 else 13), fontsize=9.5)
        axes.set_xlim(0.7 - 0.04 * count, count + 0.3 + 0.04 * count)
        panels.append(axes)
        axes.set_xticks(range(1, count + 1) if count <= 6 else range(1, count + 1, 3))
        axes.tick_params(labelsize=8)
        if index % columns == 0:
            axes.set_ylabel("holdout loss\n(nats per token)", fontsize=9)
        if index >= count - columns:
            axes.set_xlabel("after phase", fontsize=9)
    _same_span(panels)
    figure.suptitle("Loss over the phases", x=0.01, ha="left")
    return figure


def drift_bars(results: RunResults) -> Figure | None:
    """Drift and advantage per condition, with the seeds, and the paper's values hatched beside."""
    if not any(results.complete_seeds(name) for name in results.conditions):
        return None
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    _drift_panel(left, results)
    _advantage_panel(right, results)
    left.set_title("Drift: loss gained since a task's own phase")
    right.set_title("Advantage over FROZEN")
    figure.legend(handles=_bar_handles(), loc="outside lower left", ncols=3, fontsize=9)
    figure.suptitle("Forgetting and benefit", x=0.01, ha="left")
    return figure


def spectral_norm(results: RunResults) -> Figure | None:
    """Largest deviation of the spectral norm of M from 1 over the layers, and the adapter's extreme singular values."""
    logs = list(_spectral_logs(results))
    if not logs:
        return None
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    worst = -np.inf
    for name, positions, log in logs:
        colour = _colour(name)
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
    ink: dict[str, Any] = {"color": _INK, "linewidth": 1.4}
    kinds = [Line2D([], [], **ink, label="largest"), Line2D([], [], **ink, linestyle=(0, (3, 1)), label="smallest")]
    lower.legend(handles=kinds, loc="center right", fontsize=9)
    for axes in (upper, lower):
        _phase_axis(axes, results)
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
        axes.plot(positions, values, color=_colour(name), linewidth=1.5)
    if results.run.displacement_budget is not None:
        axes.axhline(results.run.displacement_budget, color="#b00020", linewidth=1.2, linestyle="--")
        axes.annotate(
            f"budget δ = {results.run.displacement_budget:g}", (0, results.run.displacement_budget),
            xycoords=("axes fraction", "data"), xytext=(4, -4), textcoords="offset points", va="top",
            color="#b00020", fontsize=9,
        )  # fmt: skip
    axes.set_ylim(bottom=0, top=max(axes.get_ylim()[1], 1.08 * (results.run.displacement_budget or 0)))
    axes.set_ylabel("displacement\n(spectral norm, no unit)")
    _phase_axis(axes, results)
    figure.suptitle(f"Displacement of the shared adapter from its anchor, {_names(logs)}", x=0.01, ha="left")
    return figure


def overview(results: RunResults) -> Figure | None:
    """For a README: the heat maps of MODULAR and NAIVE, and the bars of drift and advantage."""
    present = [name for name in ("modular", "naive") if _matrix(results, name)]
    shown = present or [name for name in results.conditions if _matrix(results, name)][:2]
    if not shown:
        return None
    figure = Figure(figsize=(11.5 if len(shown) > 1 else 9, 4.5), layout="constrained")
    halves = figure.add_gridspec(1, 2, width_ratios=[1.75 if len(shown) > 1 else 1.0, 1])
    left, right = figure.add_subfigure(halves[0]), figure.add_subfigure(halves[1])
    grid = left.add_gridspec(2, len(shown), height_ratios=[3.2, 0.1])
    norm = _change_norm(results, shown)
    numbered = len(results.tasks) <= 6
    for index, name in enumerate(shown):
        axes = left.add_subplot(grid[0, index])
        _heat(axes, results, name, norm, size=8.5 if numbered else 0)
        if index:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel("measured after training on")
    text = "numbers: holdout loss, nats per answer token\n" if numbered else ""
    text += f"colour: {'its' if numbered else 'holdout loss,'} change since the task's own phase (diagonal), %"
    _colour_bar(left, left.add_subplot(grid[1, :]), norm, text)
    _overview_bars(right, results)
    return figure


def label(name: str, width: int = 18) -> str:
    """``name`` on one line, printable and at most ``width`` characters long."""
    printable = "".join(letter if letter.isprintable() else " " for letter in name).strip() or "(no name)"
    if len(printable) <= width:
        return printable
    tail = (width - 1) // 3  # names of a series differ at their end
    return printable[: width - 1 - tail].rstrip() + "…" + printable[-tail:].lstrip()


def _overview_bars(part: SubFigure, results: RunResults) -> None:
    upper, lower = part.subplots(2, 1)
    _drift_panel(upper, results)
    _advantage_panel(lower, results)
    upper.set_title("Drift")
    lower.set_title("Advantage over FROZEN")
    part.legend(handles=_bar_handles()[::2], loc="outside lower right", ncols=1, fontsize=8)


def _matrix(results: RunResults, condition: str) -> tuple[Array, Array, str] | None:
    """Losses, their change since the own phase in percent, and what they are: complete seeds' mean, or the furthest."""
    if seeds := results.complete_seeds(condition):
        text = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean of {len(seeds)} seeds"
    else:
        done, seed = max(
            ((len(results.phases_of(condition, s)), -i) for i, s in enumerate(results.seeds)), default=(0, 0)
        )
        if not done:
            return None
        seeds = [results.seeds[-seed]]
        text = f"seed {seeds[0]}, {done} of {len(results.tasks)} phases"
    losses = np.stack([results.holdout_matrix(condition, seed) for seed in seeds])
    own = np.diagonal(losses, axis1=1, axis2=2)[:, None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        change = (100 * (losses - own) / own).mean(axis=0)
    return losses.mean(axis=0), change, text


def _change_norm(results: RunResults, conditions: list[str]) -> Normalize:
    found = [entry for name in conditions if (entry := _matrix(results, name))]
    largest = max((float(np.nanmax(np.abs(change), initial=0.0)) for _, change, _ in found), default=0.0)
    return Normalize(-max(largest, 1.0), max(largest, 1.0))


def _heat(axes: Axes, results: RunResults, condition: str, norm: Normalize, size: float) -> None:
    entry = _matrix(results, condition)
    if entry is None:
        return
    losses, change, text = entry
    count = len(results.tasks)
    image = axes.imshow(np.ma.masked_invalid(change), cmap="PuOr_r", norm=norm, aspect="auto")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(True, which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    names = [label(task, 14) for task in results.tasks]
    axes.set_xticks(range(count), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), names)
    axes.set_title(f"{condition.upper()}, {text}", color=_colour(condition))
    for row in range(count):
        for column in range(row + 1):
            if np.isfinite(losses[row, column]):
                red, green, blue, _ = image.to_rgba(change[row, column])
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
                weight = "bold" if row == column else "normal"
                if row == column:  # white on white otherwise
                    axes.add_patch(_cell(row, "#efefef"))
                if size:
                    axes.text(
                        column, row, f"{losses[row, column]:.2f}", ha="center", va="center", fontsize=size,
                        color="white" if dark and row != column else _INK, weight=weight,
                    )  # fmt: skip


def _colour_bar(figure: Figure | SubFigure, host: Axes, norm: Normalize, text: str) -> None:
    host.set_axis_off()
    place = host.inset_axes((0.25, 0, 0.5, 1))
    bar = figure.colorbar(ScalarMappable(norm, "PuOr_r"), cax=place, orientation="horizontal")
    bar.set_label(text, fontsize=9)
    bar.outline.set_visible(False)


def _cell(index: int, colour: str) -> Rectangle:
    return Rectangle((index - 0.5, index - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=2, zorder=1)


def _training_loss(axes: Axes, results: RunResults, condition: str) -> None:
    """Mean over the seeds that reached a phase, and the range of their smoothed losses."""
    for phase in range(len(results.tasks)):
        records = [results.phases_of(condition, seed)[phase : phase + 1] for seed in results.seeds]
        curves = [_smoothed(record[0].losses) for record in records if record and record[0].losses]
        if not curves:
            continue
        positions = np.linspace(0, 1, 200)
        stacked = np.stack([np.interp(positions, (np.arange(len(c)) + 0.5) / len(c), c) for c in curves])
        axes.plot(
            phase + positions, stacked.mean(axis=0), color=_colour(condition), linestyle=_line(condition), linewidth=1.6
        )
        if len(curves) > 1:
            axes.fill_between(
                phase + positions,
                stacked.min(axis=0),
                stacked.max(axis=0),
                color=_colour(condition),
                alpha=0.15,
                linewidth=0,
            )


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
    style: dict[str, Any] = {"color": _colour(condition), "marker": _MARKERS.get(condition, "^"), "markersize": 4}
    for path in paths if reached is None or len(paths) == 1 else [paths.mean(axis=0)]:
        axes.plot(phases, path, linestyle=_line(condition), linewidth=1.3, **style)
    if reached is not None and len(paths) > 1:
        axes.vlines(phases, paths.min(axis=0), paths.max(axis=0), color=_colour(condition), alpha=0.35, linewidth=1.2)
        axes.fill_between(
            phases, paths.min(axis=0), paths.max(axis=0), color=_colour(condition), alpha=0.15, linewidth=0
        )


def _same_span(panels: list[Axes]) -> None:
    """Give every panel the same height in nats, so that slopes compare and a tiny change looks tiny."""
    limits = [axes.get_ylim() for axes in panels]
    half = max(high - low for low, high in limits) / 2
    for axes, (low, high) in zip(panels, limits, strict=True):
        axes.set_ylim((low + high) / 2 - half, (low + high) / 2 + half)


def _phase_axis(axes: Axes, results: RunResults) -> None:
    """x = phase + fraction of its optimizer steps; the tasks named in the middle of their phases."""
    count = len(results.tasks)
    axes.set_xlim(0, count)
    axes.grid(False, axis="x")
    for boundary in range(1, count):
        axes.axvline(boundary, color="#bbbbbb", linewidth=0.8, zorder=0.5)
    width = 16 if count <= 6 else 9
    axes.set_xticks(
        np.arange(count) + 0.5, [label(task, width) for task in results.tasks], rotation=30 if count > 8 else 0
    )
    axes.tick_params(axis="x", length=0)
    steps = sorted({len(record.losses) for record in results.phases.values()})
    text = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
    axes.set_xlabel(f"phase, {text} optimizer steps each")


def _drift_panel(axes: Axes, results: RunResults) -> None:
    values = {
        name: [100 * metrics.drift for seed in results.seeds if (metrics := results.metrics(name, seed))]
        for name in results.conditions
    }
    several = len(results.tasks) > 1
    paper = {name: column.drift for name, column in PAPER_TABLE_7.items()}
    empty = "no finished run yet" if several else "a single task cannot drift"
    _bars(axes, values if several else {}, paper, empty)
    axes.set_ylabel("drift (%)")


def _advantage_panel(axes: Axes, results: RunResults) -> None:
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
    axes.axhline(0, color=_INK, linewidth=0.8)
    if not ours:
        axes.text(0.5, 0.5, empty, transform=axes.transAxes, ha="center", va="center", color=_FAINT)
        axes.set(xticks=[], yticks=[])
        return
    for place, (name, values) in enumerate(ours.items()):
        column = paper.get(name)
        _bar(axes, place - (0.2 if column else 0), float(np.mean(values)), values, facecolor=_colour(name))
        if column:
            hatched = {"facecolor": "none", "hatch": "////", "edgecolor": _colour(name)}
            _bar(axes, place + 0.2, column.mean, list(column.seeds), **hatched)
    axes.set_xticks(range(len(ours)), [name.upper() for name in ours])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.6, len(ours) - 0.4)
    axes.margins(y=0.18)
    axes.spines["bottom"].set_visible(False)


def _bar(axes: Axes, place: float, mean: float, values: list[float], **style: Any) -> None:
    axes.bar([place], [mean], width=0.36, linewidth=1.2, **style)
    if len(values) > 1:
        axes.vlines(place, min(values), max(values), color=_INK, linewidth=1.1)
        axes.plot([place] * len(values), values, "o", color="white", markeredgecolor=_INK, markersize=3.5)
    tip = max([mean, 0.0, *values]) if mean >= 0 else min([mean, *values])
    text = "0" if mean == 0 and not any(values) else f"{mean:+.2f}" if abs(mean) < 10 else f"{mean:+.1f}"
    axes.annotate(
        text.replace("-", "−"), (place, tip), xytext=(0, 4 if mean >= 0 else -4), textcoords="offset points",
        ha="center", va="bottom" if mean >= 0 else "top", fontsize=8.5,
    )  # fmt: skip


def _bar_handles() -> list[Any]:
    dots = Line2D(
        [], [], color=_INK, marker="o", markerfacecolor="white", markersize=4, linewidth=1.1, label="each seed"
    )
    return [
        Patch(facecolor="#777777", label="this run"),
        dots,
        Patch(facecolor="none", edgecolor="#777777", hatch="////", label="paper, Mistral-7B: another model and scale"),
    ]


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


def _handle(condition: str) -> Line2D:
    return Line2D([], [], color=_colour(condition), linestyle=_line(condition), label=condition.upper())


def _line(condition: str) -> Any:
    return _LINES.get(condition, ":")


def _colour(condition: str) -> str:
    return _COLOURS.get(condition) or _SPARE_COLOURS[sum(condition.encode()) % len(_SPARE_COLOURS)]

"""The holdout matrix as a heat map."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from backends.finetune.report.labels import label, readable
from backends.finetune.report.pictures import style
from backends.finetune.report.pictures.style import Array
from backends.finetune.runs.results import RunResults

COLOURS = "change since the task's own phase, %   (orange: forgotten, purple: improved)"


def holdout_heat_map(results: RunResults) -> Figure | None:
    """One panel per condition: holdout loss in nats as numbers, its change since the task's own phase as colour."""
    shown = style.main_and_rest([name for name in results.conditions if holdout_change(results, name)])[0]
    if not shown:
        return None
    count = len(results.tasks)
    columns = min(len(shown), 3 if count <= 5 else 2 if count <= 8 else 1)
    height = 10 / columns * (0.86 if columns > 1 else 0.5) if count > 2 else 3.0
    size = 9 if count <= 12 else 7 if count <= 18 else 0
    figure, panels = _heat_maps(results, shown, columns, (1.15, height, 0.12), change_norm(results, shown), size)
    for index, axes in enumerate(panels):
        axes.set_xlabel("holdout task")
        if index % columns == 0:
            axes.set_ylabel("measured after training on")
        else:
            axes.set_yticklabels([])
    style.heading(figure, "Holdout loss after each phase, nats per answer token (bold: the task's own phase)")
    return figure


HOLDOUT = style.Picture(
    "holdout.png",
    holdout_heat_map,
    "Read a column downwards: it starts on the diagonal, in the task's own phase, and each lower row is "
    "measured after one more phase. Orange cells forgot, purple cells improved, white cells kept what they had.",
)


def more_heat_maps(results: RunResults) -> Figure | None:
    """The conditions that the large heat maps leave out, as small ones with numbered tasks."""
    everything = [name for name in results.conditions if holdout_change(results, name)]
    shown = style.main_and_rest(everything)[1]
    if not shown:
        return None
    columns, count = 4, len(results.tasks)
    norm, size = change_norm(results, everything), 7.5 if count <= 6 else 0
    figure, panels = _heat_maps(results, shown, columns, (1.5, 2.35, 0.1), norm, size)
    numbers = [str(number + 1) for number in range(count)]
    for index, (name, axes) in enumerate(zip(shown, panels, strict=True)):
        axes.set_xticks(range(count), numbers, rotation=0, ha="center")
        axes.set_yticks(range(count), numbers if index % columns == 0 else [""] * count)
        axes.set_title(label(readable(name), 24), color=style.mark_of(name).colour, fontsize=9)
        if index % columns == 0:
            axes.set_ylabel("after phase", fontsize=9)
        if index + columns >= len(shown):
            axes.set_xlabel("holdout task", fontsize=9)
    tasks = ", ".join(f"{number} {task}" for number, task in enumerate(style.task_labels(results, 12)[:8], start=1))
    style.heading(figure, f"Holdout loss of the other conditions, nats per token ({tasks})", fontsize=10.5)
    return figure


MORE_HOLDOUT = style.Picture(
    "holdout_more.png",
    more_heat_maps,
    "The same for the other conditions, with the same colours.",
)


def _heat_maps(
    results: RunResults,
    shown: list[str],
    columns: int,
    heights: tuple[float, float, float],
    norm: Normalize,
    size: float,
) -> tuple[Figure, list[Axes]]:
    """A heat map for each condition above one colour bar; ``heights``: of the rest, of a row and of the bar."""
    rest, height, bar = heights
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(10, rest + height * rows), layout="constrained")
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[height] * rows + [bar])
    panels = [figure.add_subplot(grid[divmod(index, columns)]) for index in range(len(shown))]
    for name, axes in zip(shown, panels, strict=True):
        draw_heat(axes, results, name, norm, size)
    draw_colour_bar(figure, figure.add_subplot(grid[rows, :]), norm, COLOURS)
    return figure, panels


def holdout_change(results: RunResults, condition: str) -> tuple[Array, Array, str] | None:
    """Losses, their change since the own phase in percent, and what they are: complete seeds' mean, or the furthest."""
    if seeds := results.complete_seeds(condition):
        text = style.seeds_text(seeds)
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


def change_norm(results: RunResults, conditions: list[str]) -> Normalize:
    found = [entry for name in conditions if (entry := holdout_change(results, name))]
    largest = max((float(np.nanmax(np.abs(change), initial=0.0)) for _, change, _ in found), default=0.0)
    return Normalize(-max(largest, 1.0), max(largest, 1.0))


def draw_heat(axes: Axes, results: RunResults, condition: str, norm: Normalize, size: float) -> None:
    entry = holdout_change(results, condition)
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
    names = style.task_labels(results, 14)
    axes.set_xticks(range(count), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), names)
    axes.set_title(f"{label(readable(condition), 24)}\n{text}", color=style.mark_of(condition).colour)
    for row in range(count):
        for column in range(row + 1):
            if np.isfinite(losses[row, column]):
                red, green, blue, _ = image.to_rgba(change[row, column])
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
                weight = "bold" if row == column else "normal"
                if row == column:  # white on white otherwise
                    corner = (row - 0.5, row - 0.5)
                    axes.add_patch(
                        Rectangle(corner, 1, 1, facecolor="#efefef", edgecolor="white", linewidth=2, zorder=1)
                    )
                if size:
                    axes.text(
                        column, row, f"{losses[row, column]:.2f}", ha="center", va="center", fontsize=size,
                        color="white" if dark and row != column else style.INK, weight=weight,
                    )  # fmt: skip


def draw_colour_bar(figure: Figure | SubFigure, host: Axes, norm: Normalize, text: str) -> None:
    host.set_axis_off()
    place = host.inset_axes((0.25, 0, 0.5, 1))
    bar = figure.colorbar(ScalarMappable(norm, "PuOr_r"), cax=place, orientation="horizontal")
    bar.set_label(text, fontsize=9)
    bar.outline.set_visible(False)

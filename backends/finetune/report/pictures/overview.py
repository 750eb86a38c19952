"""The run at a glance: heat maps of two conditions, and bars."""

from matplotlib.figure import Figure, SubFigure

from backends.finetune.report.pictures.bars import WITH_PAPER, bar_handles, bar_panel
from backends.finetune.report.pictures.heat_map import change_norm, draw_colour_bar, draw_heat, holdout_change
from backends.finetune.report.pictures.style import Picture
from backends.finetune.runs.results import RunResults

MOST_BARS = 9


def overview(results: RunResults) -> Figure | None:
    """For a README: the heat maps of MODULAR and NAIVE, and the bars of drift and advantage."""
    modular = [name for name in results.conditions if name.partition("@")[0] == "modular"][:1]
    present = [name for name in (*modular, "naive") if holdout_change(results, name)]
    shown = present or [name for name in results.conditions if holdout_change(results, name)][:2]
    if not shown:
        return None
    figure = Figure(figsize=(11.5 if len(shown) > 1 else 9, 4.5), layout="constrained")
    halves = figure.add_gridspec(1, 2, width_ratios=[1.75 if len(shown) > 1 else 1.0, 1])
    left, right = figure.add_subfigure(halves[0]), figure.add_subfigure(halves[1])
    grid = left.add_gridspec(2, len(shown), height_ratios=[3.2, 0.1])
    norm = change_norm(results, shown)
    numbered = len(results.tasks) <= 6
    for index, name in enumerate(shown):
        axes = left.add_subplot(grid[0, index])
        draw_heat(axes, results, name, norm, size=8.5 if numbered else 0)
        if index:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel("measured after training on")
    text = "numbers: holdout loss, nats per answer token\n" if numbered else ""
    text += f"colour: {'its' if numbered else 'holdout loss,'} change since the task's own phase (diagonal), %"
    draw_colour_bar(left, left.add_subplot(grid[1, :]), norm, text)
    _overview_bars(right, results)
    return figure


OVERVIEW = Picture(
    "overview.png",
    overview,
    "The run at a glance. Left: how each task's holdout loss changed after its own phase (read a "
    "column downwards from the diagonal). Right: the means of these changes.",
)


def _overview_bars(part: SubFigure, results: RunResults) -> None:
    shown = [name for name in results.conditions if results.complete_seeds(name)] or list(results.conditions)
    if len(shown) > MOST_BARS:
        kept = [name for name in shown if "@" not in name and name not in ("modular-still", "frozen-raised")]
        shown = kept[:MOST_BARS]
    upper, lower = part.subplots(2, 1)
    bar_panel(upper, results, shown, "drift", narrow=True)
    bar_panel(lower, results, shown, "advantage", narrow=True)
    upper.set_title("Drift")
    lower.set_title("Advantage over FROZEN")
    if handles := bar_handles(results, with_paper=len(shown) <= WITH_PAPER)[1:]:
        part.legend(handles=handles[-1:], loc="outside lower right", ncols=1, fontsize=7.5)

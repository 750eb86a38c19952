"""What all pictures share: a palette, marks that tell conditions apart without colour, the axis of phases."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from backends.finetune.methods.conditions import KNOWN, PAPER, parse_condition
from backends.finetune.methods.method import Condition, Mark
from backends.finetune.report.labels import label, readable
from backends.finetune.report.pictures.fonts import FAMILY, is_drawn
from backends.finetune.runs.results import RunResults

Array = NDArray[np.float64]
_SPARE_COLOURS = ("#999933", "#AA4499", "#332288", "#661100")
INK, FAINT = "#222222", "#8a8a8a"
BOUND = "#b00020"
STYLE: dict[str, Any] = {
    "font.family": FAMILY, "font.size": 10, "axes.titlesize": 10.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": FAINT,
    "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK, "axes.grid": True,
    "grid.color": "#e4e4e4", "grid.linewidth": 0.7, "axes.axisbelow": True, "legend.frameon": False,
    "lines.linewidth": 1.8, "hatch.linewidth": 0.8, "text.parse_math": False, "axes.formatter.useoffset": False,
    "xtick.labelsize": 9, "ytick.labelsize": 9, "figure.titlesize": 12.5, "figure.titleweight": "bold",
}  # fmt: skip


class Picture(NamedTuple):
    """One picture of a run: its file, what paints it (None where a run has no data for it), and its caption."""

    name: str
    paint: Callable[[RunResults], Figure | None]
    caption: str


def heading(figure: Figure, text: str, **style: Any) -> None:
    """The title of a picture, at its upper left."""
    figure.suptitle(text, x=0.01, ha="left", **style)


def legend_below(figure: Figure, handles: Sequence[Any], ncols: int = 5, fontsize: float = 8.5) -> None:
    """The legend of a picture, at its lower left, where it covers nothing."""
    figure.legend(handles=handles, loc="outside lower left", ncols=ncols, fontsize=fontsize)


def note(axes: Axes, text: str, place: tuple[float, float], offset: tuple[float, float], **look: Any) -> None:
    """A text beside a height of the data: ``place`` is (fraction of the axes' width, height), ``offset`` in points."""
    axes.annotate(text, place, xycoords=("axes fraction", "data"), xytext=offset, textcoords="offset points", **look)


def band(axes: Axes, x: Any, curves: Array, colour: str, alpha: float = 0.15) -> None:
    """The range of several curves, one a row, as far as they reach; nothing for a single one."""
    if len(curves) > 1:
        low, high = np.nanmin(curves, axis=0), np.nanmax(curves, axis=0)
        axes.fill_between(x, low, high, color=colour, alpha=alpha, linewidth=0)


def phase_axis(axes: Axes, results: RunResults, short: bool = False) -> None:
    """x = phase + fraction of its optimizer steps; the tasks named in the middle of their phases, or numbered."""
    count = len(results.tasks)
    axes.set_xlim(0, count)
    axes.grid(False, axis="x")
    for boundary in range(1, count):
        axes.axvline(boundary, color="#bbbbbb", linewidth=0.8, zorder=0.5)
    width = 16 if count <= 6 else 9
    names = [str(number + 1) for number in range(count)] if short else task_labels(results, width)
    axes.set_xticks(np.arange(count) + 0.5, names, rotation=30 if count > 8 and not short else 0)
    axes.tick_params(axis="x", length=0)
    steps = sorted({len(record.losses) for record in results.phases.values()})
    text = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
    axes.set_xlabel("phase" if short else f"phase, {text} optimizer steps each")


def task_labels(results: RunResults, width: int) -> list[str]:
    """The tasks' names, each on one line; "task N" for one that no font at hand can draw."""
    names = [label(task, width) for task in results.tasks]
    return [name if is_drawn(name) else f"task {number}" for number, name in enumerate(names, start=1)]


def mark_of(condition: str) -> Mark:
    """Its own, as its method's file says; a budget's shade goes by its size."""
    if condition in KNOWN:
        return KNOWN[condition].mark
    try:
        known = parse_condition(condition)
    except ValueError:
        return _spare_mark(condition)
    budget = known.data_budget or known.budget or math.inf
    place = 1.0 if math.isinf(budget) else float(np.clip((math.log10(budget) + 4) / 4, 0, 1))
    colours = "RdPu" if known.data_budget else "YlGn" if known.basis == "always" else "PuBu"
    marker = "d" if known.start == "fresh" else known.mark.marker
    return Mark(to_hex(colormaps[colours](0.42 + 0.5 * place)), (0, (2 + 4 * place, 1)), marker)


def _spare_mark(condition: str) -> Mark:
    return Mark(_SPARE_COLOURS[sum(condition.encode(errors="replace")) % len(_SPARE_COLOURS)], ":", "^")


def budget_in(results: RunResults, condition: str) -> float | None:
    """The displacement budget that a condition's CRMA keeps in this run, infinity for none; None where it keeps a data
    budget or does not move on, or the condition is not known.
    """
    known = _known(results, condition)
    if known is None or known.data_budget is not None:
        return None
    limit = known.limit(results.run.displacement_budget)
    return None if known.trains_crma != "always" else math.inf if limit is None else limit


def data_budget_in(results: RunResults, condition: str) -> float | None:
    """The data budget that a condition's CRMA keeps in this run, if any."""
    known = _known(results, condition)
    return None if known is None else known.data_budget


def _known(results: RunResults, condition: str) -> Condition | None:
    try:
        return parse_condition(condition).with_data_budget(results.run.data_budget)
    except ValueError:
        return None


def handle_of(condition: str, marker: bool = False) -> Line2D:
    """Entry of a legend."""
    mark = mark_of(condition)
    return Line2D(
        [], [], color=mark.colour, linestyle=mark.line, marker=mark.marker if marker else "", markersize=5,
        label=label(readable(condition), 30),
    )  # fmt: skip


def main_and_rest(conditions: Sequence[str]) -> tuple[list[str], list[str]]:
    """What the large pictures show, the paper's three where there are any, else the first three; and all others."""
    if len(conditions) <= 4:
        return list(conditions), []
    main = [name for name in conditions if name in PAPER] or list(conditions[:3])
    return main, [name for name in conditions if name not in main]


def logarithmic(axis: Axis) -> None:
    """Plain numbers at the marks of a logarithmic axis: the usual powers need mathematics in texts."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def seeds_text(seeds: Sequence[int]) -> str:
    """What a line or a colour stands for."""
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"mean of {len(seeds)} seeds"

"""What all pictures share: a palette, marks that tell conditions apart without colour, labels, the axis of phases."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from backends.finetune.results import RunResults

# Okabe and Ito's palette; line style and marker tell the conditions apart without colour.
_COLOURS = {"naive": "#D55E00", "frozen": "#0072B2", "modular": "#009E73"}
_SPARE_COLOURS = ("#CC79A7", "#E69F00", "#56B4E9", "#555555")
_LINES: dict[str, Any] = {"naive": "-.", "frozen": (0, (4, 1.5)), "modular": "-"}
MARKERS = {"naive": "o", "frozen": "s", "modular": "D"}
INK, FAINT = "#222222", "#8a8a8a"
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 10.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": FAINT,
    "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK, "axes.grid": True,
    "grid.color": "#e4e4e4", "grid.linewidth": 0.7, "axes.axisbelow": True, "legend.frameon": False,
    "lines.linewidth": 1.8, "hatch.linewidth": 0.8, "text.parse_math": False, "axes.formatter.useoffset": False,
    "xtick.labelsize": 9, "ytick.labelsize": 9, "figure.titlesize": 12.5, "figure.titleweight": "bold",
}  # fmt: skip


def label(name: str, width: int = 18) -> str:
    """``name`` on one line, printable and at most ``width`` characters long."""
    printable = "".join(letter if letter.isprintable() else " " for letter in name).strip() or "(no name)"
    if len(printable) <= width:
        return printable
    tail = (width - 1) // 3  # names of a series differ at their end
    return printable[: width - 1 - tail].rstrip() + "…" + printable[-tail:].lstrip()


def phase_axis(axes: Axes, results: RunResults) -> None:
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


def handle_of(condition: str) -> Line2D:
    return Line2D([], [], color=colour_of(condition), linestyle=line_of(condition), label=condition.upper())


def line_of(condition: str) -> Any:
    return _LINES.get(condition, ":")


def colour_of(condition: str) -> str:
    return _COLOURS.get(condition) or _SPARE_COLOURS[sum(condition.encode()) % len(_SPARE_COLOURS)]

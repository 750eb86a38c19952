"""The picture of a report: the worst error, as a share of what is allowed, by magnitude of the logits."""

import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from backends.files import printable

# Okabe and Ito's palette; line style and marker tell the lines apart without colour.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555", "#000000")
_MARKS = ("o", "s", "D", "^", "v", "P", "X", "*")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 10.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#8a8a8a",
    "axes.grid": True, "grid.color": "#e4e4e4", "grid.linewidth": 0.7, "axes.axisbelow": True, "legend.frameon": False,
    "text.parse_math": False, "svg.fonttype": "path", "svg.hashsalt": "crma",
}  # fmt: skip
FLOOR = 1e-4
_CEILING = 1e6
_MAGNITUDES = (0.0, 0.1, 1.0, 10.0, 1e3, 1e6, 1e10, 1e20, 1e37)
_DIRECTIONS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("values", lambda operation: not operation.endswith("gradient")),
    ("gradients", lambda operation: operation.endswith("gradient")),
)


def draw(backends: list[dict[str, Any]]) -> bytes | None:
    """SVG: a row per backend, values on the left, gradients on the right; None without a comparison to draw.

    The same data give the same bytes.
    """
    drawn = [section for section in backends if section["by_magnitude"]]
    if not drawn:
        return None
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(11.5, 0.7 + 3.3 * len(drawn)), layout="constrained")
        grid = figure.subplots(len(drawn), 2, sharex=True, sharey=True, squeeze=False)
        operations = sorted({line["operation"] for section in drawn for line in section["by_magnitude"]})
        top = _top(drawn)
        for row, section in zip(grid, drawn, strict=True):
            for axes, (direction, belongs) in zip(row, _DIRECTIONS, strict=True):
                names = [name for name in operations if belongs(name)]
                _panel(axes, section, names, top)
                axes.set_title(f"{_short(section['name'])}: {direction}")
        for axes in grid[:, 0]:
            axes.set_ylabel("worst error / allowed error")
        for axes in grid[-1]:
            axes.set_xlabel("magnitude of the logits")
        places: tuple[Any, Any] = ("outside lower left", "outside lower right")
        for (_, belongs), place in zip(_DIRECTIONS, places, strict=True):
            names = [name for name in operations if belongs(name)]
            if names:
                lines = [_line(names.index(name), label=name) for name in names]
                figure.legend(handles=lines, loc=place, ncols=2, fontsize=8.5)
        buffer = io.BytesIO()
        FigureCanvasSVG(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return buffer.getvalue()


def _panel(axes: Axes, section: dict[str, Any], names: list[str], top: float) -> None:
    axes.axhspan(1.0, top, color="#b3261e", alpha=0.07, linewidth=0)
    axes.axhline(1.0, color="#b3261e", linewidth=1.4)
    axes.text(0.0, 1.18, "the limit", color="#b3261e", fontsize=8.5, va="bottom")
    for line in section["by_magnitude"]:
        if line["operation"] in names:
            points = line["points"]
            shares = [min(max(point["share"], FLOOR), top) for point in points]
            style = _line(names.index(line["operation"]))
            style.set_data([point["magnitude"] for point in points], shares)
            style.set_clip_on(False)
            axes.add_line(style)
    axes.set_xscale("function", functions=(_position, _magnitude))
    axes.set_xlim(0.0, 3e37)
    axes.xaxis.set_major_locator(FixedLocator(_MAGNITUDES))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("e+0", "e").replace("e+", "e")))
    axes.set_yscale("log")
    axes.set_ylim(FLOOR, top)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"≤ {value:g}" if value <= FLOOR else f"{value:g}"))


def _line(index: int, label: str = "") -> Line2D:
    return Line2D(
        [], [], color=_COLOURS[index % len(_COLOURS)], marker=_MARKS[index % len(_MARKS)], markersize=4.5,
        linestyle=_DASHES[index % len(_DASHES)], linewidth=1.3, label=label,
    )  # fmt: skip


def _position(magnitude: Any) -> Any:
    """Where a magnitude is drawn: the square root of a logarithm, so that 0 to 50 and 1e3 to 1e37 both have room."""
    return np.sqrt(np.log10(1.0 + np.maximum(magnitude, 0.0) / 0.1))


def _magnitude(position: Any) -> Any:
    return 0.1 * (10.0 ** np.minimum(np.square(position), 300.0) - 1.0)


def _top(sections: list[dict[str, Any]]) -> float:
    """A power of ten above the largest share, up to a ceiling at which anything larger is drawn."""
    shares = (point["share"] for section in sections for line in section["by_magnitude"] for point in line["points"])
    largest = max((min(share, _CEILING) for share in shares), default=1.0)
    return float(10.0 ** max(1, math.ceil(math.log10(max(largest, 1.0)) + 0.01)))


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= 44 else f"{name[:20]}…{name[-22:]}"

"""Labels of points, placed so that they cover neither each other nor a point."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

Point = tuple[float, float]
SPACE = 5.5  # half the width of the square that a point's marker takes, in points of 1/72 inch


class _Place(NamedTuple):
    """Where a label stands beside its point: offset in points of 1/72 inch, and which of its sides is there."""

    x: float
    y: float
    ha: str
    va: str


def _ring(away: float) -> list[_Place]:
    near = 0.7 * away
    return [
        _Place(near, near, "left", "bottom"),
        _Place(near, -near, "left", "top"),
        _Place(-near, near, "right", "bottom"),
        _Place(-near, -near, "right", "top"),
        _Place(away, 0, "left", "center"),
        _Place(-away, 0, "right", "center"),
        _Place(0, away, "center", "bottom"),
        _Place(0, -away, "center", "top"),
    ]


_PLACES = [place for away in (9, 22, 36, 52) for place in _ring(away)]


def place_labels(figure: Figure, axes: Axes, labels: Sequence[tuple[str, Point]], points: Sequence[Point]) -> None:
    """Write each text beside its point, away from all ``points``; a thin line leads to one that stands further off.

    Call it last: it lays the figure out to know where the points are.
    """
    figure.draw_without_rendering()
    frame, scale = axes.get_window_extent(), figure.dpi / 72
    centres, half = [axes.transData.transform(point) for point in points], SPACE * scale
    taken = [Bbox([centre - half, centre + half]) for centre in centres]
    for text, point in labels:
        style: dict[str, Any] = {"fontsize": 9, "weight": "bold", "zorder": 4}
        measured = axes.text(*point, text, **style)
        size = measured.get_window_extent()
        measured.remove()
        x, y = axes.transData.transform(point)
        boxes = [_box(x + place.x * scale, y + place.y * scale, size, place) for place in _PLACES]
        beyond = [float(box.width * box.height) - _shared(box, frame) for box in boxes]
        costs = [sum(_shared(box, other) for other in taken) + 9 * out for box, out in zip(boxes, beyond, strict=True)]
        best = costs.index(min(costs))
        taken.append(boxes[best])
        place, leader = _PLACES[best], {"arrowstyle": "-", "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3}
        axes.annotate(
            text, point, xytext=(place.x, place.y), textcoords="offset points", ha=place.ha, va=place.va, **style,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            arrowprops=leader if best >= len(_ring(0)) else None,
        )  # fmt: skip


def _box(x: float, y: float, size: Bbox, place: _Place) -> Bbox:
    left = x - {"left": 0.0, "center": 0.5, "right": 1.0}[place.ha] * size.width
    bottom = y - {"bottom": 0.0, "center": 0.5, "top": 1.0}[place.va] * size.height
    return Bbox.from_bounds(left, bottom, size.width, size.height)


def _shared(one: Bbox, other: Bbox) -> float:
    """Area of what both cover."""
    both = Bbox.intersection(one, other)
    return 0.0 if both is None else float(both.width * both.height)

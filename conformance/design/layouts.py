"""The fixed table of layouts, ``layouts.json``: which shapes, dtypes, memory and special values are tried together.

Clauses: CONF-10.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from conformance.design.axes import ADAPTER, HIDES_OTHERS, PROJECTION, class_of, hidden_size

FILE = Path(__file__).with_name("layouts.json")


class ProjectionLayout(NamedTuple):
    """A batch of logits (*leading, n, n), K iterations, and how the arrays lie in memory."""

    number: int
    n: int
    leading: tuple[int, ...]
    iterations: int
    logits: tuple[str, float]
    memory: str

    @property
    def quick(self) -> bool:
        """Whether ``--quick`` tries it."""
        return self.number in quick_layouts(projection_layouts())

    def visible(self) -> ProjectionLayout:
        """With logits that hide nothing of what sizes and memory do."""
        return self._replace(logits=("normal", 1.0))

    def variants(self) -> tuple[ProjectionLayout, ...]:
        """Itself, and :meth:`visible`."""
        return tuple(dict.fromkeys((self, self.visible())))

    @property
    def numbers(self) -> int:
        """Of S, times the number of steps that its gradient goes back."""
        return math.prod(self.leading) * self.n**2 * self.iterations

    def __str__(self) -> str:
        return f"{self.number}-n{self.n}-batch{_shape(self.leading)}-K{self.iterations}-{_word(self.memory)}"


class AdapterLayout(NamedTuple):
    """x (*leading, d), S (n, n), A (n, r, d): shapes, the dtype of x, its special values, gate, basis and memory."""

    number: int
    n: int
    rank: int
    spare: int
    leading: tuple[int, ...]
    iterations: int
    logits: tuple[str, float]
    gate: float
    dtype: str
    tokens: float | str
    memory: str
    basis: str

    @property
    def hidden_size(self) -> int:
        return self.n * self.rank + self.spare

    @property
    def quick(self) -> bool:
        """Whether ``--quick`` tries it."""
        return self.number in quick_layouts(adapter_layouts())

    def visible(self) -> AdapterLayout:
        """With logits, a gate, x and a basis that hide nothing of what sizes, dtype and memory do."""
        return self._replace(logits=("normal", 1.0), gate=1.0, tokens=1.0, basis="normal")

    def variants(self) -> tuple[AdapterLayout, ...]:
        """Itself; with an open gate and x of order one, to see its logits and its basis; and :meth:`visible`."""
        return tuple(dict.fromkeys((self, self._replace(gate=-0.5, tokens=1.0), self.visible())))

    @property
    def numbers(self) -> int:
        """Of x and of A."""
        return (math.prod(self.leading) + self.n * self.rank) * self.hidden_size

    def __str__(self) -> str:
        return (
            f"{self.number}-n{self.n}-r{self.rank}-d{self.hidden_size}-tokens{_shape(self.leading)}-K{self.iterations}-"
            f"gate{self.gate:g}-{self.dtype}-x_{_word(self.tokens)}-{_word(self.memory)}-{_word(self.basis)}"
        )


def _shape(leading: tuple[int, ...]) -> str:
    return "x".join(map(str, leading)) or "1"


def _word(value: Any) -> str:
    return f"{value}".replace(" ", "_").replace("/", ":")


Layout = ProjectionLayout | AdapterLayout


@cache
def quick_layouts(layouts: tuple[Layout, ...]) -> frozenset[int]:
    """Numbers of those that ``--quick`` tries: small ones first, until every class of every axis has occurred."""
    axes = PROJECTION if isinstance(layouts[0], ProjectionLayout) else ADAPTER
    table = rows("projection" if axes is PROJECTION else "adapter")
    classes = [{(axis.name, class_of(axis, row[axis.name])) for axis in axes} for row in table]
    hiding = set(HIDES_OTHERS.items())
    classes = [met & hiding or met for met in classes]
    missing, chosen = set().union(*classes), []
    cost = [math.log(one.numbers + 1000) for one in layouts]
    while missing:
        best = max(range(len(layouts)), key=lambda number: len(classes[number] & missing) / cost[number])
        chosen.append(best)
        missing -= classes[best]
    return frozenset(chosen)


@cache
def _table() -> dict[str, list[dict[str, Any]]]:
    return json.loads(FILE.read_text(encoding="utf-8"))


@cache
def rows(name: str) -> tuple[dict[str, Any], ...]:
    """The rows of ``projection`` or ``adapter``, by the names of the axes, lists as tuples."""
    axes = {"projection": PROJECTION, "adapter": ADAPTER}[name]
    return tuple(
        {a.name: tuple(v) if isinstance(v, list) else v for a, v in zip(axes, row, strict=True)}
        for row in _table()[name]
    )


def projection_layout(number: int, row: dict[str, Any]) -> ProjectionLayout:
    """A layout from values by the names of the axes."""
    return ProjectionLayout(number, row["n"], row["leading"], row["K"], row["logits"], row["memory"])


def adapter_layout(number: int, row: dict[str, Any]) -> AdapterLayout:
    """A layout from values by the names of the axes."""
    spare = hidden_size(row) - row["n"] * row["r"]
    sizes = (row["n"], row["r"], spare, row["leading"], row["K"])
    return AdapterLayout(
        number, *sizes, row["logits"], row["gate"], row["dtype"], row["x"], row["memory"], row["basis"]
    )


@cache
def projection_layouts() -> tuple[ProjectionLayout, ...]:
    """All of them, in the order of the table."""
    return tuple(projection_layout(number, row) for number, row in enumerate(rows("projection")))


@cache
def adapter_layouts() -> tuple[AdapterLayout, ...]:
    """All of them, in the order of the table."""
    return tuple(adapter_layout(number, row) for number, row in enumerate(rows("adapter")))

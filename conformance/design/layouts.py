"""The fixed table of layouts, ``layouts.json``: which shapes, dtypes, memory and special values are tried together.

Clauses: CONF-13. Source: ours.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from conformance.design.axes import ADAPTER, PROJECTION, hidden_size

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
    def numbers(self) -> int:
        """Of S, times the number of steps that its gradient goes back."""
        return math.prod(self.leading) * self.n**2 * self.iterations

    def __str__(self) -> str:
        return f"{self.number}-n={self.n}-{_shape(self.leading)}-K={self.iterations}-{_word(self.memory)}"


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
    def numbers(self) -> int:
        """Of x and of A."""
        return (math.prod(self.leading) + self.n * self.rank) * self.hidden_size

    def __str__(self) -> str:
        return (
            f"{self.number}-n={self.n}-r={self.rank}-d={self.hidden_size}-{_shape(self.leading)}-K={self.iterations}-"
            f"gate={self.gate:g}-{self.dtype}-{_word(self.tokens)}-{_word(self.memory)}"
        )


def _shape(leading: tuple[int, ...]) -> str:
    return "x".join(map(str, leading)) or "single"


def _word(value: Any) -> str:
    return f"{value}".replace(" ", "_")


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


@cache
def projection_layouts() -> tuple[ProjectionLayout, ...]:
    """All of them, in the order of the table."""
    return tuple(
        ProjectionLayout(i, row["n"], row["leading"], row["K"], row["logits"], row["memory"])
        for i, row in enumerate(rows("projection"))
    )


@cache
def adapter_layouts() -> tuple[AdapterLayout, ...]:
    """All of them, in the order of the table."""
    return tuple(
        AdapterLayout(
            i,
            row["n"],
            row["r"],
            hidden_size(row) - row["n"] * row["r"],
            row["leading"],
            row["K"],
            row["logits"],
            row["gate"],
            row["dtype"],
            row["x"],
            row["memory"],
            row["basis"],
        )
        for i, row in enumerate(rows("adapter"))
    )

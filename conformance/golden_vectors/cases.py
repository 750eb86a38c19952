"""What a golden vector is made of: a case, its outputs with their bounds, and the choice of its seed.

Every array is drawn from a seed made of the name of its case, so that one case can be added without changing another.

Clauses: VEC-2, VEC-3.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends import load_backend
from conformance.agreement import Comparison
from conformance.compare import is_resolvable
from conformance.strategies import Adapter, Logits
from conformance.tolerances import DTYPES, tolerance_for

Array = NDArray[Any]
Row = tuple[str, str]
REFERENCE = load_backend("reference")
ATTEMPTS = 60
CLEAR = 100.0


@dataclass(frozen=True)
class Output:
    """``values`` of the reference and what a port may differ by; ``bounds``: dtype -> (relative, absolute)."""

    values: Array
    row: str
    bounds: dict[str, tuple[float, float]]

    @property
    def is_clear(self) -> bool:
        """Far above the bounds, not just far enough for ACC-2; or exactly zero, where zeros are right."""
        largest = float(np.abs(self.values).max(initial=0.0))
        return not largest or all(largest >= CLEAR * absolute for _, absolute in self.bounds.values())


@dataclass(frozen=True)
class Case:
    """One call: named inputs, and the outputs that are asked for. ``file``: of a state file, beside the header.

    ``refuse``: why a port must raise, or with ``or_nan`` may answer NaN throughout instead. ``not_finite``: result ->
    "all" or "some", of its numbers.
    """

    name: str
    operation: str
    clauses: tuple[str, ...]
    drawn: str
    iterations: int | None = 20
    inputs: dict[str, Array] = field(default_factory=dict)
    outputs: dict[str, Output] = field(default_factory=dict)
    file: str = ""
    refuse: str = ""
    or_nan: bool | None = None
    not_finite: dict[str, str] = field(default_factory=dict)


def seed_of(name: str, attempt: int = 0) -> int:
    return zlib.crc32(f"{name}/{attempt}".encode())


def settle(build: Callable[[int], list[Case]], name: str, wanted: int) -> list[Case]:
    """The cases of the first seed with ``wanted`` outputs that stand clear of their bounds; else of the best seed."""
    tried: list[tuple[float, list[Case]]] = []
    for attempt in range(ATTEMPTS):
        cases = build(seed_of(name, attempt))
        score = sum(1.0 if value.is_clear else 0.5 for case in cases for value in case.outputs.values())
        tried.append((score, cases))
        if score >= wanted:
            break
    return max(tried, key=lambda scored: scored[0])[1]


def output(name: str, comparison: Comparison, row: Row, zeros_are_right: bool = False) -> dict[str, Output]:
    """The reference's value with its bounds, or nothing where zeros would pass in the place of it (ACC-2).

    ``zeros_are_right``: for n = 1 and for no tokens, where zeros are all that is asked for.
    """
    scale = float(np.max(comparison.scale, initial=0.0))
    values = np.asarray(comparison.expected, dtype=np.float64)
    if not values.any() and not zeros_are_right:
        return {}
    bounds = {}
    for dtype in DTYPES:
        tolerance = tolerance_for(row[0], dtype, row[1])
        if not is_resolvable(values, tolerance, scale):
            return {}
        bounds[dtype] = (tolerance.relative, tolerance.atol * scale)
    return {name: Output(values, ", ".join(row), bounds)}


class HadamardAdapter(Adapter):
    """Exactly orthonormal in float32: the first n r rows of a Hadamard matrix of order d, a power of 4, over sqrt d."""

    @property
    def basis(self) -> Array:
        matrix = np.ones((1, 1))
        while len(matrix) < self.hidden_size:
            matrix = np.block([[matrix, matrix], [matrix, -matrix]])
        rows = matrix[: self.logits.n * self.rank] / np.sqrt(self.hidden_size)
        return (self.basis_scale * rows.reshape(self.logits.n, self.rank, -1)).astype(np.float32)


def words(drawn: Logits | Adapter) -> str:
    """How the inputs were drawn; ``conformance.strategies`` has the formulas."""
    if isinstance(drawn, Logits):
        return f"{drawn.kind} logits, magnitude {drawn.magnitude:g}, seed {drawn.seed}"
    rows = "rows of a Hadamard matrix" if isinstance(drawn, HadamardAdapter) else "normal"
    return (
        f"{words(drawn.logits)}; x normal times {drawn.x_scale:g}, basis {rows} times {drawn.basis_scale:g}, "
        f"cotangent normal, seed {drawn.seed}"
    )

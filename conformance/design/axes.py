"""The axes of a case: what may vary, in classes of values that a port may treat alike.

Two classes of two axes always meet in some layout of the table (:mod:`conformance.design.layouts`), and every value
listed here occurs in one. Clauses: CONF-10.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple


class Axis(NamedTuple):
    """``classes``: label -> the values that a port is expected to treat alike."""

    name: str
    classes: dict[str, tuple[Any, ...]]


def _ranges(*bounds: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    return {f"{low}" if low == high else f"{low} to {high}": tuple(range(low, high + 1)) for low, high in bounds}


STREAMS = Axis("n", _ranges((1, 1), (2, 2), (3, 3), (4, 4), (5, 8), (9, 16), (17, 32), (33, 64)))
ITERATIONS = Axis(
    "K",
    {
        **_ranges((1, 1), (2, 2), (3, 3), (4, 9), (10, 19), (20, 20)),
        "21 to 50": (*range(21, 34), 37, 40, 45, 48, 50),
        "over 50": (51, 57, 60, 63, 64, 65, 72, 80, 90, 99, 100),
    },
)
RANK = Axis("r", {**_ranges((1, 1), (2, 2), (3, 4), (5, 8), (9, 16)), "over 16": (17, 24, 32)})
#: of the hidden size: below 32, what is added to n r; from there on d itself
HIDDEN = Axis(
    "d",
    {
        "n r": (0,),
        "n r + 1": (1,),
        "n r + a few": (2, 3, 5, 9, 16),
        "hundreds": (320, 384, 511, 512, 576, 768),
        "thousands": (1023, 1024, 1030, 1536, 2048, 2304, 3072),
        "over 4,000": (4096, 4101, 5120, 8191, 8192),
    },
)
LEADING = Axis(
    "leading",
    {
        "none": ((),),
        "one token": ((1,), (1, 1)),
        "a few": ((3,), (2, 3), (5,), (7,)),
        "empty": ((0,), (2, 0, 3)),
        "many axes": ((2, 1, 3, 1, 2), (1, 2, 1, 5)),
        "hundreds": ((65,), (129,), (3, 86), (300,)),
        "over 1,024": ((1030,), (2, 5, 103)),
        "over 2,048": ((2050,), (3, 701)),
        "over 4,096": ((4099,), (2, 2053)),
    },
)
#: kind and magnitude, see :mod:`conformance.strategies`
LOGITS = Axis(
    "logits",
    {
        "normal": (("normal", 0.1), ("normal", 1.0), ("normal", 5.0)),
        "normal, far apart": (("normal", 20.0), ("normal", 50.0)),
        "near permutation": (("near permutation", 1.0), ("near permutation", 5.0), ("near permutation", 20.0)),
        "triangular": (("triangular", 1.0), ("triangular", 5.0), ("triangular", 20.0)),
        "block": (("block", 1.0), ("block", 5.0), ("block", 20.0)),
        "rank one": (("rank one", 1.0), ("rank one", 20.0), ("rank one", 50.0)),
        "constant": (("constant", 0.0), ("constant", 5.0)),
        "lattice": tuple(("lattice", 2.0**k) for k in (8, 12, 20, 30, 60, 90, 120)),
    },
)
GATE = Axis(
    "gate",
    {
        "-104 to -31": (-104.0, -95.0, -89.0, -87.0, -60.0, -40.0),
        "-30 to -12": (-30.0, -25.0, -20.0, -18.0, -16.0, -14.0, -12.5),
        "-12 to -3": (-10.0, -8.0, -5.0),
        "-3 to 3": (-2.0, -1.0, 0.0, 1.0, 2.0),
        "3 to 17": (5.0, 8.0, 11.0, 12.5, 14.0, 16.0),
        "17 to 104": (18.0, 20.0, 30.0, 40.0, 60.0, 87.0, 95.0, 104.0),
    },
)
DTYPE = Axis("dtype", {name: (name,) for name in ("float16", "bfloat16", "float64", "float32")})
TOKENS = Axis(
    "x",
    {
        "of order one": (1.0,),
        "small": (1e-10, 1e-2),
        "large": (300.0, 1e10),
        "subnormal": ("subnormal",),
        "zeros": ("zeros", "negative zeros"),
        "near the largest": ("largest",),
        "NaN": ("nan",),
        "infinity": ("inf", "-inf"),
    },
)
MEMORY = Axis(
    "memory",
    {name: (name,) for name in ("C", "Fortran", "strided", "reversed", "stride 0", "read-only", "unaligned")},
)
BASIS = Axis(
    "basis",
    {
        name: (name,)
        for name in (
            "orthonormal",
            "normal",
            "times 1/1000",
            "times 1000",
            "nearly orthonormal",
            "of two sizes",
            "repeated rows",
            "zero rows",
            "one row",
        )
    },
)

PROJECTION = (STREAMS, LEADING, ITERATIONS, LOGITS, MEMORY)
#: with one stream nothing is mixed, and without tokens nothing is computed: a fault of anything else would not show
HIDES_OTHERS = {"n": "1", "leading": "empty"}
ADAPTER = (STREAMS, RANK, HIDDEN, LEADING, ITERATIONS, LOGITS, GATE, DTYPE, TOKENS, MEMORY, BASIS)

DIRECTIONS = 320  # n r at most: the powers in kappa take (n r)^3 steps, which a port in plain Python must do too
LOGITS_NUMBERS = 1_300_000  # in a batch of logits, and in the 2 K matrices that its gradient may keep
TOKENS_NUMBERS = 2_200_000  # in x
PRODUCTS = 35_000_000  # of numbers of x with numbers of the basis


def projection_fits(row: dict[str, Any]) -> bool:
    """Whether a batch of logits and what its gradient keeps, 2 K matrices, stay within ``LOGITS_NUMBERS``."""
    return "leading" not in row or math.prod(row["leading"]) * row["n"] ** 2 * row.get("K", 1) <= LOGITS_NUMBERS


def adapter_fits(row: dict[str, Any]) -> bool:
    """Whether n r, x and the work stay within the three limits above, and n r <= d."""
    if "r" not in row or "d" not in row:
        return row.get("n", 1) * row.get("r", 1) <= DIRECTIONS
    directions, width = row["n"] * row["r"], hidden_size(row)
    numbers = math.prod(row.get("leading", ())) * width
    return directions <= min(width, DIRECTIONS) and numbers <= TOKENS_NUMBERS and numbers * directions <= PRODUCTS


def hidden_size(row: dict[str, Any]) -> int:
    """d of a layout of the adapter."""
    return int(row["d"] if row["d"] >= 32 else row["n"] * row["r"] + row["d"])


def class_of(axis: Axis, value: Any) -> str:
    """The label of the class that a value belongs to."""
    return next(label for label, values in axis.classes.items() if value in values)


def feasible(axes: Iterable[Axis], labels: Iterable[str], fits: Callable[[dict[str, Any]], bool]) -> bool:
    """Whether some values of these classes fit together. Axes that ``fits`` does not read are left out."""
    options: list[dict[str, Any]] = [{}]
    for axis, label in zip(axes, labels, strict=False):
        if axis.name in ("n", "r", "d", "leading", "K"):
            options = [{**row, axis.name: value} for row in options for value in _extremes(axis.classes[label])]
    return any(fits(row) for row in options)


def _extremes(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The smallest, which fits wherever another does, and the largest (of d, whose class must hold n r)."""
    size = math.prod if isinstance(values[0], tuple) else float
    return min(values, key=size), max(values, key=size)

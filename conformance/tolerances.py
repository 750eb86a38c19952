"""The one table of tolerances, keyed by (operation, dtype, direction). Each row says why.

Clauses: ACC-1, ACC-3.

``atol`` is multiplied by the scale of the case (``conformance.agreement``): the size of the quantity's inputs, times
the range of the logits where they are not on a lattice. So one row serves every magnitude. "Floor" is the worst error
of ``conformance.selftest.port``, a float32 NumPy port, against the float64 reference over 5,000 random cases of
``conformance.strategies``, in units of eps * scale. A row leaves a port 4 to 20 times its floor, for another order of
summation and for another exp and log. Three kinds of rows are not made that way: the row and column sums have what
SINK-5 promises, 2 times the floor in float32 (in float64, 3 times that of the reference); "differences" has what a
difference quotient costs; and the 16-bit rows have one rounding.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from reference.errors import ConfigError

DTYPES = ("float32", "float64")
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@dataclass(frozen=True)
class Tolerance:
    """``|a - e| <= max(|e| * max(rtol, ulps * eps), atol * scale)``, eps being that of ``dtype``."""

    dtype: str
    ulps: float
    rtol: float
    atol: float
    reason: str
    operation: str = ""

    @property
    def eps(self) -> float:
        return EPS[self.dtype]

    @property
    def relative(self) -> float:
        return max(self.rtol, self.ulps * self.eps)


#: (operation, direction): ulps, atol in eps, scale, reason
_ROWS = {
    ("sinkhorn_projection", "forward"): (
        4,
        16,
        "range of S",
        "floor 1.8: 2K - 1 roundings of a log-matrix, which do not add up",
    ),
    ("sinkhorn_projection", "gradient"): (
        4,
        32,
        "range of S, max |dL/dM|",
        "floor 4.7: K steps back, each a difference of sums",
    ),
    ("adapter y - x", "forward"): (
        4,
        16,
        "||x||",
        "floor 1.7: y is rounded beside x, the read-in and write-out are sums over d",
    ),
    ("adapter x", "gradient"): (4, 16, "||dL/dy||", "floor 2.8: as forward, with the transposes"),
    ("adapter mix_logits", "gradient"): (
        4,
        8,
        "s G",
        "floor 0.42: the projection's error, but a mean over n r products",
    ),
    ("adapter gate_logit", "gradient"): (4, 8, "s (1 - s) G", "floor 1.2: one sum over tokens, streams and ranks"),
    ("adapter basis", "gradient"): (4, 12, "s G / ||A||_2", "floor 1.7: read-in, write-out and kappa added up"),
    ("row and column sums", "forward"): (
        0,
        4.19,
        "max(1, n / 16)",
        "SINK-5: 5e-7 in float32 for n <= 16; floor 2.3e-7 over 4,000 matrices of every magnitude",
    ),
    ("spectral norm", "forward"): (
        0,
        4.19,
        "max(1, n / 16)",
        "SINK-6: 5e-7 in float32; floor 1.0e-7; the norm is at most the largest sum",
    ),
    ("non-expansive", "forward"): (0, 8, "||x||", "floor 0.74 over 4,000 dense maps of every magnitude; d <= 41"),
}
TOLERANCES: dict[tuple[str, str, str], Tolerance] = {}


def _add(operation: str, dtype: str, direction: str, ulps: float, atol: float, reason: str) -> None:
    row = Tolerance(dtype, ulps, 0.0, atol, reason, f"{operation}, {direction}")
    TOLERANCES[operation, dtype, direction] = row


for (_name, _direction), (_ulps, _atol, _scale, _reason) in _ROWS.items():
    for _dtype in DTYPES:
        _add(_name, _dtype, _direction, _ulps, _atol * EPS[_dtype], f"{_reason}; scale: {_scale}")
for _bound in ("row and column sums", "spectral norm"):  # SINK-5 and SINK-6 are stated for float32 alone
    _reason = "floor 5 eps at n = 16, of the reference; scale: max(1, n / 16)"
    _add(_bound, "float64", "forward", 0, 16 * EPS["float64"], _reason)
for _dtype in DTYPES:
    _reason = (
        "a slope over 2 h, h = eps^(1/3): rounding of the forward pass adds eps / h, the third derivative h^2, both "
        "eps^(2/3); scale: 2 h ||x|| ||dL/dy||"
    )
    _add("differences", _dtype, "gradient", 0, 20 * EPS[_dtype] ** (2 / 3), _reason)
for _name, _direction, _scale in (("adapter y", "forward", "||x||"), ("adapter x", "gradient", "||dL/dy||")):
    for _dtype in ("float16", "bfloat16"):
        _reason = f"MIX-10: float32 inside, one rounding to nearest at the end; scale: {_scale}"
        _add(_name, _dtype, _direction, 0.51, 16 * EPS["float32"], _reason)


def tolerance_for(operation: str, dtype: Any, direction: str) -> Tolerance:
    """The row of an operation. Raises: ConfigError if the table has none."""
    key = (operation, dtype if isinstance(dtype, str) else np.dtype(dtype).name, direction)
    if key not in TOLERANCES:
        raise ConfigError(
            "tolerance",
            got=key,
            allowed="an (operation, dtype, direction) of conformance/tolerances.py",
            remedy="a port keeps its parameters in float32 (MIX-10), or float64; other dtypes have no row",
        )
    return TOLERANCES[key]


def as_markdown() -> str:
    """The table, for the spec page."""
    lines = ["| operation | direction | dtype | ulps | rtol | atol | reason |", "|---|---|---|---|---|---|---|"]
    for (operation, dtype, direction), row in TOLERANCES.items():
        cells = (operation, direction, dtype, f"{row.ulps:g}", f"{row.rtol:g}", f"{row.atol:.3g}", row.reason)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")

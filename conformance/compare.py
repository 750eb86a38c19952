"""The comparer: one formula, and a refusal of every comparison that could not fail.

Clauses: ACC-1, ACC-2.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conformance.clauses import clause_titles
from conformance.tolerances import Tolerance
from reference.errors import CRMAError

Array = NDArray[Any]


@dataclass(frozen=True)
class Measurement:
    """What one comparison found: its worst element, and how much of what is allowed that one takes."""

    clause: str
    operation: str
    dtype: str
    index: tuple[int, ...]
    context: object
    error: float
    allowed: float
    actual: float
    expected: float

    @property
    def share(self) -> float:
        """``error / allowed``: above 1 the comparison fails."""
        return self.error / self.allowed if self.allowed else (np.inf if self.error else 0.0)


#: called with every measurement; the report of a run is made from them
observers: list[Callable[[Measurement], None]] = []


class ToleranceError(CRMAError, AssertionError):
    """The comparison is refused: it would pass for a result of zeros, or the arrays cannot be compared at all."""


def assert_close(
    actual: ArrayLike,
    expected: ArrayLike,
    tolerance: Tolerance,
    *,
    clause: str,
    scale: ArrayLike = 1.0,
    context: object = "",
) -> None:
    """``|a - e| <= max(|e| * max(rtol, ulps * eps), atol * scale)`` for every element.

    Args:
        actual: of the port. expected: of the reference, the same shape.
        tolerance: a row of the table. scale: multiplies its atol; broadcasts against ``expected``.
        clause: what is being tested. context: what it takes to draw the case again.

    Raises:
        ToleranceError: shapes differ; a NaN in either, or an infinity in ``expected``; or zeros in the place of
            ``actual`` would pass, or nearly: ``4 atol scale >= |e|`` everywhere. Where ``expected`` is exactly zero
            everywhere (a gradient for n = 1, say) zeros are right, and ``|a| <= atol * scale`` is what is asked.
        AssertionError: an element is further off.

    Clauses: ACC-1, ACC-2.
    """
    a, e, s = _comparable(actual, expected, scale, clause, context)
    if not is_resolvable(e, tolerance, s):
        raise ToleranceError(
            f"tolerance for {clause}",
            got=f"atol {tolerance.atol:.3g} times {s.max():.3g}, beside expected values up to {np.abs(e).max():.3g}",
            allowed="less than a quarter of the largest expected value, or a result of zeros would pass",
            remedy=f"compare a quantity of order one, or a case whose value is larger: {context}",
        )
    assert_within(a, e, tolerance, clause=clause, scale=s, context=context)


def assert_within(
    actual: ArrayLike,
    expected: ArrayLike,
    tolerance: Tolerance,
    *,
    clause: str,
    scale: ArrayLike = 1.0,
    context: object = "",
) -> None:
    """As :func:`assert_close` without ACC-2: for what lies below the tolerance. It bounds a port's noise, no more."""
    a, e, s = _comparable(actual, expected, scale, clause, context)
    if a.size == 0:
        return
    bound = np.broadcast_to(np.maximum(np.abs(e) * tolerance.relative, tolerance.atol * s), e.shape)
    error = np.abs(a - e)
    excess = np.divide(error, bound, out=np.where(error > 0, np.inf, 0.0), where=bound > 0)
    worst = np.unravel_index(int(excess.argmax()), excess.shape)
    index = tuple(int(i) for i in worst)
    at_worst = (float(array[worst]) for array in (error, bound, a, e))
    found = Measurement(clause, tolerance.operation, tolerance.dtype, index, context, *at_worst)
    for observe in observers:
        observe(found)
    if (error <= bound).all():
        return
    in_ulp = (
        f" = {found.error / _ulp(found.expected, tolerance):.3g} ulp of {tolerance.dtype}" if found.expected else ""
    )
    raise AssertionError(
        f"{clause}: {np.count_nonzero(error > bound)} of {e.size} values are too far from the reference.\n"
        f"  clause: {clause_titles().get(clause, 'none of the specification')}\n"
        f"  worst at {index}: actual {a[worst]!s}, expected {e[worst]!s}\n"
        f"  error {found.error:.3g}{in_ulp}, allowed {found.allowed:.3g}\n"
        f"  tolerance: {tolerance.ulps:g} ulp, rtol {tolerance.rtol:g}, atol {tolerance.atol:.3g} "
        f"(times {np.broadcast_to(s, e.shape)[worst]:.3g}) because {tolerance.reason}\n"
        f"  case: {context}"
    )


def is_resolvable(expected: ArrayLike, tolerance: Tolerance, scale: ArrayLike = 1.0) -> bool:
    """Whether zeros would fail clearly (ACC-2); true where ``expected`` is exactly zero everywhere."""
    magnitude = np.abs(np.asarray(expected, dtype=np.float64))
    if not magnitude.any():
        return True
    return tolerance.relative < 0.25 and bool((magnitude > 4.0 * tolerance.atol * np.asarray(scale)).any())


def _comparable(
    actual: ArrayLike, expected: ArrayLike, scale: ArrayLike, clause: str, context: object
) -> tuple[Array, ...]:
    a, e, s = (np.asarray(value, dtype=np.float64) for value in (actual, expected, scale))
    if a.shape != e.shape:
        raise ToleranceError(
            f"shape for {clause}", got=a.shape, allowed=f"{e.shape}, as the reference", remedy=f"look at {context}"
        )
    for name, array, bad in (
        ("actual", a, np.isnan(a)),
        ("expected", e, ~np.isfinite(e)),
        ("scale", s, ~np.isfinite(s)),
    ):
        if bad.any():
            raise ToleranceError(
                f"{name} value for {clause}",
                got=f"{np.count_nonzero(bad)} non-finite of {array.size}",
                allowed="finite values" if name != "actual" else "no NaN",
                remedy=f"look at {context}",
            )
    return a, e, s


def assert_at_most(
    actual: ArrayLike,
    limit: ArrayLike,
    tolerance: Tolerance,
    *,
    clause: str,
    scale: ArrayLike = 1.0,
    context: object = "",
) -> None:
    """``a <= limit + atol * scale`` for every element: for the bounds that the theorems state.

    Raises: ToleranceError for a NaN or unequal shapes, AssertionError. Clauses: ACC-1.
    """
    a = np.asarray(actual, dtype=np.float64)
    e = np.minimum(a, np.broadcast_to(np.asarray(limit, dtype=np.float64), a.shape))
    assert_within(a, e, tolerance, clause=clause, scale=scale, context=context)


def _ulp(value: float, tolerance: Tolerance) -> float:
    """The distance from ``value`` to the next larger number of the tolerance's dtype, subnormal numbers aside."""
    return float(2.0 ** np.floor(np.log2(abs(value)))) * tolerance.eps

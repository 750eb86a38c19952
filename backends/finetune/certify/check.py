"""One checked promise: what was measured, what is allowed, and the verdict."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from backends.certificate import ROUNDING as ROUNDING

Verdict = Literal["pass", "fail", "not promised"]
#: Float64 arithmetic of the reference: sums and norms of matrices of some 16 rows.
REFERENCE_ROUNDING = 1e-12
#: Rounding of a stored state to float32 (BUDGET-1).
BUDGET_ROUNDING = 1e-6
#: Between a certificate that was logged and the same one measured again, perhaps on another device.
LOG_ROUNDING = 1e-5


class Check(NamedTuple):
    """``value`` is the worst that was measured, ``bound`` what is allowed; both None where the check is no number.

    ``condition`` is "run" for what concerns the whole folder; ``seed`` is None there. ``where`` names the place of the
    worst value, ``reason`` says why it fails or is not promised.
    """

    condition: str
    seed: int | None
    name: str
    clauses: str
    verdict: Verdict
    value: float | None = None
    bound: float | None = None
    where: str = ""
    reason: str = ""

    @property
    def margin(self) -> float | None:
        """``bound - value``; negative where the bound is broken."""
        return None if self.value is None or self.bound is None else self.bound - self.value


def at_most(condition: str, seed: int | None, name: str, clauses: str, worst: tuple[float, str], bound: float) -> Check:
    """A bound on the ``worst`` (value, place). NaN breaks every bound."""
    value, where = worst
    fits = value <= bound
    reason = "" if fits else "not finite" if not math.isfinite(value) else f"{value - bound:.3g} above the bound"
    return Check(condition, seed, name, clauses, "pass" if fits else "fail", value, bound, where, reason)


def holds(condition: str, seed: int | None, name: str, clauses: str, faults: list[str], where: str = "") -> Check:
    """A promise that holds or not: it fails with the first of ``faults``, if there is one."""
    reason = "" if not faults else faults[0] + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else "")
    return Check(condition, seed, name, clauses, "fail" if faults else "pass", where=where, reason=reason)


def not_promised(condition: str, seed: int | None, name: str, worst: tuple[float, str] | None, reason: str) -> Check:
    """Something that a reader might expect, and that this condition does not promise."""
    value, where = (None, "") if worst is None else worst
    return Check(condition, seed, name, "", "not promised", value, None, where, reason)


def largest(values: list[tuple[float, str]]) -> tuple[float, str]:
    """The largest (value, place); a NaN counts as larger than everything."""
    return max(values, key=lambda entry: math.inf if math.isnan(entry[0]) else entry[0])

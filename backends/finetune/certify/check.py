"""One checked promise: what was measured, what is allowed, and the verdict."""

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

from backends.certificate import ROUNDING as ROUNDING

Measured = tuple[float, str]  # a value and its place
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


class Subject(NamedTuple):
    """What a check is about: a condition and a seed, or THE_RUN. Makes the checks of it."""

    condition: str
    seed: int | None

    def at_most(self, name: str, clauses: str, worst: list[Measured], bound: float) -> Check:
        """A bound on the largest of some values. NaN breaks every bound."""
        value, where = largest(worst)
        fits = value <= bound
        reason = "" if fits else "not finite" if not math.isfinite(value) else f"{value - bound:.3g} above the bound"
        return Check(*self, name, clauses, "pass" if fits else "fail", value, bound, where, reason)

    def holds(self, name: str, clauses: str, faults: Iterable[str]) -> Check:
        """A promise that holds or not: it fails with the first of ``faults``, if there is one."""
        found = list(faults)
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return Check(*self, name, clauses, "fail" if found else "pass", reason=found[0] + more if found else "")

    def not_promised(self, name: str, worst: list[Measured], reason: str) -> Check:
        """Something that a reader might expect, and that this condition does not promise."""
        value, where = largest(worst) if worst else (None, "")
        return Check(*self, name, "", "not promised", value, None, where, reason)


THE_RUN = Subject("run", None)


def largest(values: list[Measured]) -> Measured:
    """The largest; a NaN counts as larger than everything."""
    return max(values, key=lambda entry: math.inf if math.isnan(entry[0]) else entry[0])

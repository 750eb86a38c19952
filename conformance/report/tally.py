"""What a run of the suite finds, kept in constant memory: by test, by clause, by operation and by magnitude of logits.

Clauses: CONF-1, CONF-2.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from conformance.compare import Measurement
from conformance.strategies import Adapter, Logits

#: of a test, each overruling those before it
OUTCOMES = ("not run", "passed", "not offered", "gap", "failed")
OWN = ""  # in the place of a backend's name: tests of the reference itself and of the suite's tools
_LONGEST = 400
_MOST_MAGNITUDES = 64


class Worst(NamedTuple):
    """The comparison that came closest to its limit, or went furthest beyond, as text and numbers alone."""

    test: str
    clause: str
    operation: str
    dtype: str
    element: tuple[int, ...]
    error: float
    allowed: float
    actual: float
    expected: float
    share: float
    case: str
    arguments: str


@dataclass
class Tally:
    """How many comparisons there were, and the worst."""

    comparisons: int = 0
    worst: Worst | None = None


@dataclass
class Entry:
    """One test. ``name``: its id without the backend, the same for each; ``gap``: declared as reason and link;
    ``broken``: clauses that one of its comparisons found broken, whatever its marker names.
    """

    id: str
    name: str
    backend: str
    clauses: tuple[str, ...]
    measured: bool
    code: Any
    outcome: str = "not run"
    message: str = ""
    gap: tuple[str, str] | None = None
    tally: Tally = field(default_factory=Tally)
    broken: set[str] = field(default_factory=set)

    @property
    def concerns(self) -> tuple[str, ...]:
        """The clauses that its outcome speaks about."""
        unmarked = self.broken.difference(self.clauses) if self.outcome in ("gap", "failed") else ()
        return (*self.clauses, *sorted(unmarked))

    def note(self, outcome: str, message: str) -> None:
        """Of setup, call and teardown the worst outcome counts."""
        if OUTCOMES.index(outcome) > OUTCOMES.index(self.outcome):
            self.outcome, self.message = outcome, message


class Ledger:
    """Everything that a report is made from. ``current``: the test that runs now."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.by_clause: dict[tuple[str, str], Tally] = {}
        self.by_operation: dict[tuple[str, str, str], Tally] = {}
        self.by_magnitude: dict[tuple[str, str, str], dict[float, Tally]] = {}
        self.current: Entry | None = None

    def observe(self, found: Measurement) -> None:
        """Count a comparison of the current test. The case is put into words only where it is the worst so far."""
        entry = self.current
        if entry is None or not entry.measured:
            return
        operation = found.operation or f"{found.clause}, a tolerance of its own"
        dtype = found.dtype
        logits = next(_cases(found.context, Logits), None)
        tallies = [
            entry.tally,
            self.by_clause.setdefault((entry.backend, found.clause), Tally()),
            self.by_operation.setdefault((entry.backend, operation, dtype), Tally()),
        ]
        if logits is not None:
            points = self.by_magnitude.setdefault((entry.backend, operation, dtype), {})
            tallies.append(points.setdefault(_binned(logits.magnitude, points), Tally()))
        if found.share > 1:
            entry.broken.add(found.clause)
        worst = None
        for tally in tallies:
            tally.comparisons += 1
            if tally.worst is None or found.share > tally.worst.share:
                worst = worst or _in_words(found, entry, operation, dtype)
                tally.worst = worst


def _binned(magnitude: float, points: dict[float, Tally]) -> float:
    """The magnitude itself, or its decade where there are too many already."""
    if magnitude in points or len(points) < _MOST_MAGNITUDES or magnitude == 0:
        return magnitude
    return float(10.0 ** np.floor(np.log10(abs(magnitude))))


def _cases(value: object, kind: type) -> Iterator[Any]:
    """The logits or adapters in what a test gives as its context."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, Adapter):
        yield from _cases(value.logits, kind)
    elif isinstance(value, tuple):
        for part in value:
            yield from _cases(part, kind)


def _in_words(found: Measurement, entry: Entry, operation: str, dtype: str) -> Worst:
    arguments = _arguments(entry.code)
    drawn = (found.context, *arguments.values())
    words = [
        f"{s.kind} logits of magnitude {s.magnitude:g}, n = {s.n}, leading shape {s.leading}, seed {s.seed}"
        for s in islice(_cases(drawn, Logits), 1)
    ]
    words += [f"K = {arguments['iterations']}"] if "iterations" in arguments else []
    words += [
        f"d = {a.hidden_size}, r = {a.rank}, x of shape {(*a.leading, a.hidden_size)} and scale {a.x_scale:g}, "
        f"{'orthonormal' if a.orthonormal else 'random'} basis of scale {a.basis_scale:g}, "
        f"gate logit {a.gate:.4g}, seed {a.seed}"
        for a in islice(_cases(drawn, Adapter), 1)
    ]
    calls = [f"{name}={_shortened(repr(value))}" for name, value in arguments.items()]
    return Worst(
        entry.id, found.clause, operation, dtype, found.index, found.error, found.allowed, found.actual,
        found.expected, float(found.share), "; ".join(words) or _shortened(str(found.context)), ", ".join(calls),
    )  # fmt: skip


def _arguments(code: Any) -> dict[str, object]:
    """What the test that runs now was called with, its backend aside: a context rarely names all of it."""
    frame: Any = sys._getframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    if frame is None:
        return {}
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return {name: frame.f_locals[name] for name in names if name in frame.f_locals and name not in ("backend", "self")}


def _shortened(text: str) -> str:
    text = re.sub(r"\s+", " ", re.sub(r"0x[0-9a-f]{6,}", "0x…", text))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"

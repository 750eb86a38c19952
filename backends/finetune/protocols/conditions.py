"""Conditions: what a run trains and what answers. The paper's three, controls that it lacks, and baselines.

Source: naive, frozen, modular: paper section 6.1; the others: ours, and as cited in ``baselines/``. Clause: CL-5.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

BUDGET_FORM = "modular@DELTA"


@dataclass(frozen=True)
class Condition:
    """One way through the sequence of tasks.

    Attributes:
        name: as the user writes it and as the run folder has it.
        trains: "per-task", a fresh LoRA in each phase; "shared", one LoRA in all phases; "summed", a fresh LoRA whose
            output is added to that of all earlier ones (O-LoRA); "full", the base model's own parameters.
        crma: whether there is a shared CRMA, with a doubly stochastic mixing matrix or an unconstrained one.
        trains_crma: whether it goes on training after the first task.
        pinned: whether a task answers with the CRMA as it was after its own phase, rather than as it is now.
        budget: displacement budget: a number (infinity = none), or None for the protocol's.
        raised_rank: whether LoRA's rank is raised until it has as many parameters as MODULAR's LoRA and CRMA.
        baseline: the published method that is added.
    """

    name: str
    trains: Literal["per-task", "shared", "summed", "full"] = "per-task"
    crma: Literal["none", "doubly-stochastic", "unconstrained"] = "none"
    trains_crma: Literal["always", "first-task"] = "always"
    pinned: bool = False
    budget: float | None = None
    raised_rank: bool = False
    baseline: Literal["none", "replay", "ewc", "lwf", "o-lora"] = "none"

    @property
    def never_drifts(self) -> bool:
        """Whether nothing that a finished task answers with ever changes, so that its drift is exactly 0."""
        return self.trains == "per-task" and (self.crma == "none" or self.pinned or self.trains_crma == "first-task")


_MODULAR = Condition("modular", crma="doubly-stochastic")
KNOWN = {
    condition.name: condition
    for condition in (
        Condition("naive", trains="shared"),
        Condition("frozen"),
        _MODULAR,
        Condition("frozen-raised", raised_rank=True),
        replace(_MODULAR, name="modular-still", trains_crma="first-task"),
        replace(_MODULAR, name="modular-unconstrained", crma="unconstrained", budget=math.inf),
        replace(_MODULAR, name="modular-pinned", pinned=True),
        Condition("replay", trains="shared", baseline="replay"),
        Condition("ewc", trains="shared", baseline="ewc"),
        Condition("lwf", trains="shared", baseline="lwf"),
        Condition("o-lora", trains="summed", baseline="o-lora"),
        Condition("full", trains="full"),
    )
}
PAPER = ("naive", "frozen", "modular")


def parse_condition(name: str) -> Condition:
    """The condition of a name. Raises: ValueError, saying what is allowed.

    >>> parse_condition("modular@0.002").budget
    0.002
    """
    if name in KNOWN:
        return KNOWN[name]
    base, at, delta = name.partition("@")
    if at and base == "modular":
        try:
            budget = math.inf if delta == "none" else float(delta)
        except ValueError:
            budget = math.nan
        # One spelling for one budget: the name is a folder's and a row's.
        if budget > 0 and (delta == "none" or (math.isfinite(budget) and delta == f"{budget:g}")):
            return replace(_MODULAR, name=name, budget=budget)
    raise ValueError(
        f"allowed are {', '.join(KNOWN)}, and {BUDGET_FORM} with a displacement budget > 0 in its shortest form, "
        "such as modular@0.002, or modular@none"
    )


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once: those of KNOWN in its order, budgets by size behind "modular", unknown ones last."""
    known = list(KNOWN)

    def place(name: str) -> tuple[int, float]:
        try:
            condition = parse_condition(name)
        except ValueError:
            return len(known), 0.0
        if "@" in name:
            return known.index("modular"), condition.budget or 0.0
        return known.index(name), 0.0

    return tuple(sorted(dict.fromkeys(names), key=place))

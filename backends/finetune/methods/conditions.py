"""Conditions: what a run trains and what answers. The paper's three, controls that it lacks, and published methods.

A condition is what its file in this folder says; here they have their names and their order. Clause: CL-5.
"""

from collections.abc import Iterable

from backends.finetune.methods import a_gem, ewc, frozen, full, lwf, modular, naive, o_lora, replay
from backends.finetune.methods.method import Condition
from backends.finetune.methods.section import Section

#: how a budget is written behind the name of a condition that takes one, ``modular.BUDGETED``
BUDGET_FORMS = "NAME@DELTA, NAME@none, NAME@still-DELTA, NAME@data-EPSILON"
METHODS = (naive, frozen, modular, replay, a_gem, ewc, lwf, o_lora, full)  # in the order of tables and pictures
PAPER = ("naive", "frozen", "modular")  # which come first
_ALL: list[Condition] = [condition for file in METHODS for condition in file.CONDITIONS]
KNOWN = {condition.name: condition for condition in sorted(_ALL, key=lambda condition: condition.name not in PAPER)}
#: condition -> its section of a protocol
SECTIONS: dict[str, type[Section]] = {
    name: condition.method.section for name, condition in KNOWN.items() if condition.method.section
}
#: sections that a later version added: null where a protocol has none, so that what an earlier version began goes on
ADDED_LATER = ("distilled",)


def parse_condition(name: str) -> Condition:
    """The condition of a name. Raises: ValueError, saying what is allowed.

    >>> parse_condition("modular@0.002").budget
    0.002
    """
    base, at, budget = name.partition("@")
    found = modular.with_budget(KNOWN.get(base), budget) if at else KNOWN.get(name)
    if found is None:
        raise ValueError(
            f"allowed are {', '.join(KNOWN)}, and {BUDGET_FORMS}, where NAME is {' or '.join(modular.BUDGETED)} and "
            "a budget a number > 0 in its shortest form, such as modular@0.002"
        )
    return found


def shares_what_trains(name: str) -> bool:
    """Whether the tasks of a condition share one LoRA, or the sum of several, so that a copy answers otherwise."""
    known = KNOWN.get(name)
    return known is not None and known.trains in ("shared", "summed")


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once: those of KNOWN in its order, budgets by kind and size behind their condition, others last."""
    known = list(KNOWN)

    def place(name: str) -> tuple[int, int, float]:
        try:
            condition = parse_condition(name)
        except ValueError:
            return len(known), 0, 0.0
        base, at, _ = name.partition("@")
        kind = 1 + (condition.basis == "first-task") + (condition.data_budget is not None) if at else 0
        return known.index(base), kind, condition.data_budget or condition.budget or 0.0

    return tuple(sorted(dict.fromkeys(names), key=place))

"""How a budget is written behind a condition's name: one spelling for one budget. Clause: CL-5."""

import math

import pytest

from backends.finetune.methods.conditions import in_order, parse_condition

SPELLED = {
    "modular@0.002": ("MODULAR, δ 0.002", "always", 0.002, None),
    "modular@1e-05": ("MODULAR, δ 1e-05", "always", 1e-05, None),
    "modular@none": ("MODULAR, no budget", "always", math.inf, None),
    "modular@still-0.01": ("MODULAR, still basis, δ 0.01", "first-task", 0.01, None),
    "modular@data-1e-05": ("MODULAR, data ε 1e-05", "first-task", math.inf, 1e-05),
    "modular-inherit@0.5": ("MODULAR, inherit, δ 0.5", "always", 0.5, None),
    "modular-inherit@none": ("MODULAR, inherit, no budget", "always", math.inf, None),
    "modular-inherit@still-2": ("MODULAR, inherit, still basis, δ 2", "first-task", 2.0, None),
    "modular-inherit@data-0.003": ("MODULAR, inherit, data ε 0.003", "first-task", math.inf, 0.003),
}


@pytest.mark.clause("CL-5")
@pytest.mark.parametrize("name", SPELLED)
def test_each_form_says_what_it_limits(name):
    found = parse_condition(name)
    assert found.name == name
    assert (found.label, found.basis, found.budget, found.data_budget) == SPELLED[name]
    assert found.start == ("last" if "inherit" in name else "fresh")
    assert found.limit(0.05) == (None if found.budget == math.inf else found.budget)


@pytest.mark.parametrize(
    "name",
    [
        *("modular@", "modular@0", "modular@-1", "modular@inf", "modular@nan", "modular@0.0020", "modular@.002"),
        *("modular@1e-5", "modular@ 0.002", "modular@2.0", "modular@+2", "modular@NONE", "modular@0.002@none"),
        *("modular@still-none", "modular@still-", "modular@still", "modular@data-none", "modular@data-"),
        *("modular@data", "modular@data-0.0030", "modular@data--1", "modular@data-inf", "modular@data-nan"),
        *("modular@data-still-1", "modular@still-data-1", "modular@eps-1", "naive@0.002", "frozen@none", "@none"),
        *("modular-nearest@0.1", "modular-still@data-0.01", "modular-inherit@", "modular-inherit@0.10"),
        *("modular-pinned@data-0.01", "data-0.01", "modular@data-1e-5"),
    ],
)
def test_any_other_spelling_is_refused_with_those_that_are_allowed(name):
    with pytest.raises(ValueError, match="NAME@data-EPSILON, where NAME is modular or modular-inherit"):
        parse_condition(name)


def test_budgets_come_behind_their_condition_by_kind_and_size():
    wanted = [
        *("naive", "modular", "modular@0.002", "modular@0.01", "modular@none", "modular@still-0.01"),
        *("modular@data-0.001", "modular@data-0.01", "modular-pinned", "modular-inherit", "modular-inherit@none"),
        *("modular-inherit@data-0.1", "replay", "wild", "wild@data-1"),
    ]
    assert in_order(reversed(wanted)) == (*wanted[:-2], "wild@data-1", "wild")
    assert in_order([*wanted, *wanted]) == tuple(wanted)

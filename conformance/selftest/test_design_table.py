"""The table of layouts covers what spec/82 says, and every test of the suite is of a port. Clauses: CONF-10..11."""

import ast
import math
import re
from itertools import combinations, product
from pathlib import Path

import pytest

from conformance.cases import adapter_case, projection_case
from conformance.clauses import SPEC
from conformance.design.axes import HIDES_OTHERS, class_of, feasible
from conformance.design.generate import TABLES, main
from conformance.design.layouts import adapter_layouts, projection_layouts, quick_layouts, rows

pytestmark = pytest.mark.clause("CONF-10")
CONFORMANCE = Path(__file__).resolve().parents[1]
NAMES = sorted(TABLES)


def shows(row):
    """Whether a fault of anything would show: see ``HIDES_OTHERS``."""
    return row["n"] > 1 and 0 not in row["leading"]


@pytest.mark.parametrize("name", NAMES)
def test_all_pairs_of_classes_meet_where_a_fault_shows(name):
    """Counted here, without the generator; what is missing are the pairs that the limits of spec/82 leave out."""
    axes, fits = TABLES[name]
    table = rows(name)
    met = {
        ((a.name, class_of(a, row[a.name])), (b.name, class_of(b, row[b.name])))
        for row in table
        for a, b in combinations(axes, 2)
        if shows(row) or any(class_of(axis, row[axis.name]) == HIDES_OTHERS.get(axis.name) for axis in (a, b))
    }
    missing = {
        (left, right, a.name, b.name)
        for a, b in combinations(axes, 2)
        for left, right in product(a.classes, b.classes)
        if ((a.name, left), (b.name, right)) not in met
    }
    possible = [pair for pair in missing if can_meet(axes, fits, *pair)]
    assert not possible
    assert len(met) > 500
    assert len(missing) <= {"projection": 3, "adapter": 12}[name], sorted(missing)


def can_meet(axes, fits, left, right, first, second):
    """Whether some row has both, whatever its other classes are."""
    chosen = {first: [left], second: [right]}
    limiting = ("n", "leading", "K") if len(axes) == 5 else ("n", "r", "d", "leading")
    limited = [axis for axis in axes if axis.name in limiting]
    chosen = {name: labels for name, labels in chosen.items() if name in limiting}
    options = product(*(chosen.get(axis.name, list(axis.classes)) for axis in limited))
    return any(feasible(limited, labels, fits) for labels in options)


@pytest.mark.parametrize("name", NAMES)
def test_every_value_occurs_where_a_fault_shows(name):
    for axis in TABLES[name][0]:
        for label, values in axis.classes.items():
            hides = label == HIDES_OTHERS.get(axis.name)
            assert set(values) <= {row[axis.name] for row in rows(name) if hides or shows(row)}, (axis.name, label)
    if name == "adapter":
        assert {row["n"] for row in rows(name)} == set(range(1, 65))


@pytest.mark.parametrize("name", NAMES)
def test_a_few_layouts_meet_every_class_where_a_fault_shows(name):
    """Those of ``--quick``."""
    numbers = quick_layouts(projection_layouts() if name == "projection" else adapter_layouts())
    quick = [rows(name)[number] for number in numbers]
    assert len(quick) < 20
    for axis in TABLES[name][0]:
        for label in axis.classes:
            hides = label == HIDES_OTHERS.get(axis.name)
            assert any(class_of(axis, row[axis.name]) == label for row in quick if hides or shows(row)), label


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_within_the_limits(name):
    _, fits = TABLES[name]
    assert all(fits(row) for row in rows(name))


def test_the_table_is_what_the_generator_makes():
    pytest.importorskip("allpairspy")
    assert main(["--check"]) == 0


def test_layouts_are_few_and_their_names_differ():
    """A port that compiles for each needs a few hundred programs."""
    assert len(projection_layouts()) + len(adapter_layouts()) < 320
    assert len({str(one) for one in adapter_layouts()}) == len(adapter_layouts())
    assert len({str(one) for one in projection_layouts()}) == len(projection_layouts())


def test_inputs_are_what_the_layout_says():
    for layout in adapter_layouts():
        if layout.numbers < 3000:
            case = adapter_case(layout, 3)
            assert case.x.shape == case.cotangent.shape == (*layout.leading, layout.hidden_size)
            assert case.basis.shape == (layout.n, layout.rank, layout.hidden_size)
            assert case.x.size == math.prod(layout.leading) * layout.hidden_size
    for one in projection_layouts():
        if one.numbers < 3000:
            assert projection_case(one, 3).values.shape == (*one.leading, one.n, one.n)


@pytest.mark.clause("CONF-11")
def test_the_text_names_every_axis():
    """spec/82 lists them; a new axis needs its line there."""
    text = (SPEC / "82-conformance.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- axes:begin -->(.*?)<!-- axes:end -->", text, re.DOTALL)
    assert table
    for axes, _ in TABLES.values():
        for axis in axes:
            assert re.search(rf"^\| {re.escape(axis.name)} \|", table[1], re.MULTILINE), axis.name


def test_every_test_of_the_suite_is_of_a_port():
    """What tests this project's own code lies beside that code, and what tests the suite in selftest/."""
    for path in CONFORMANCE.glob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert "backend" in [argument.arg for argument in node.args.args], f"{path.name}::{node.name}"

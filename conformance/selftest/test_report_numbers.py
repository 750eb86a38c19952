"""The numbers of a conformance report are those of its comparisons. Clause: CONF-1."""

import math
import re

import numpy as np
import pytest

from conformance import compare
from conformance.agreement import projection
from conformance.clauses import clause_titles
from conformance.report.files import plain, write_reports
from conformance.selftest.port import make_port
from conformance.selftest.reports import AGREES, PORT, made_up, read, report_of, summary_of
from conformance.strategies import Logits
from conformance.tolerances import tolerance_for

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

DATES = ("date", "seconds")


def test_keys_of_the_schema(passing):
    data, _, _ = passing
    assert (data["schema"], data["schema_version"], data["spec_version"]) == ("crma-conformance-report", 1, "0.3")
    assert list(data) == [
        "schema", "schema_version", "project_version", "spec_version", "date", "seconds", "machine", "options",
        "complete", "incomplete", "clauses", "port_clauses_without_a_test", "backends", "own_tests",
    ]  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", data["date"])
    assert set(data["machine"]) == {"platform", "processor", "python", "numpy"}
    for port in data["backends"]:
        assert set(port) == {
            "name", "identity", "counts", "comparisons", "worst_share", "clauses", "tests", "accuracy",
            "by_magnitude", "verdict", "verdict_code",
        }  # fmt: skip
        assert list(port["clauses"]) == [clause["id"] for clause in data["clauses"]] == list(clause_titles())


def test_numbers_are_those_of_a_direct_comparison(passing):
    """The worst case is drawn again from the words of the report, and compared again."""
    port = passing[0]["backends"][1]
    (test,) = port["tests"]
    worst = test["worst"]
    arguments = eval(
        f"dict({worst['arguments']})", {"__builtins__": {}, "dict": dict, "Logits": Logits}
    )  # our own text
    again = projection(make_port(), **arguments)
    tolerance = tolerance_for("sinkhorn_projection", "float32", "forward")
    found: list[compare.Measurement] = []
    compare.observers.append(found.append)
    try:
        compare.assert_within(again.actual, again.expected, tolerance, clause="SINK-4", scale=again.scale)
    finally:
        compare.observers.remove(found.append)
    (measured,) = found
    for name in ("error", "allowed", "actual", "expected", "share"):
        assert getattr(measured, name) == worst[name], name
    assert list(measured.index) == worst["element"]
    assert 0 < worst["share"] < 1
    assert f"K = {arguments['iterations']}" in worst["case"]
    (row,) = port["accuracy"]
    assert (row["operation"], row["dtype"], row["allowed_eps"]) == ("sinkhorn_projection, forward", "float32", 16)
    assert row["reached_eps"] == pytest.approx(16 * worst["share"])
    assert test["comparisons"] == row["comparisons"] == port["clauses"]["SINK-4"]["comparisons"] >= 20
    (line,) = port["by_magnitude"]
    assert sum(point["comparisons"] for point in line["points"]) == row["comparisons"]
    assert max(point["share"] for point in line["points"]) == row["share"] == port["worst_share"]
    assert {point["magnitude"] for point in line["points"]} >= {0.0, 50.0}


def test_the_same_run_gives_the_same_report(passing, tmp_path):
    again, page, _ = report_of(tmp_path, AGREES, "--backend=reference", f"--backend={PORT}")
    assert {**again, **dict.fromkeys(DATES)} == {**passing[0], **dict.fromkeys(DATES)}

    def timeless(text):
        return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC|<dd>[\d.]+ s</dd>", "", text)

    assert timeless(page) == timeless(passing[1])
    assert timeless(page) != page


def test_memory_does_not_grow_with_the_number_of_comparisons():
    ledger = made_up("passed")
    ledger.current = ledger.entries["0"]
    rng = np.random.default_rng(0)
    for error in rng.random(3000):
        case = Logits("normal", float(10 ** rng.uniform(-3, 37)), 3, (), 1)
        ledger.observe(
            compare.Measurement("SINK-4", "an operation", "float32", (0, 1), (case, 3), error, 2.0, 1.0 + error, 1.0)
        )
    ((points),) = ledger.by_magnitude.values()
    assert len(points) <= 64 + 41
    assert sum(tally.comparisons for tally in points.values()) == ledger.entries["0"].tally.comparisons == 3000
    worst = ledger.entries["0"].tally.worst
    assert worst is not None
    assert 0.499 < worst.share <= 0.5


def test_comparisons_outside_a_test_of_the_suite_do_not_count():
    """Such as those of selftest/, which are wrong on purpose."""
    ledger = made_up("passed")
    found = compare.Measurement("SINK-4", "an operation", "float32", (), "", 5.0, 2.0, 6.0, 1.0)
    ledger.observe(found)
    ledger.current = ledger.entries["0"]
    ledger.current.measured = False
    ledger.observe(found)
    assert not ledger.by_operation
    ledger.current.measured = True
    ledger.observe(found)
    assert summary_of(ledger)["backends"][0]["worst_share"] == 2.5


@pytest.mark.clause("CONF-1")
@pytest.mark.parametrize(("outcome", "clauses"), [("failed", ["SINK-1", "SINK-4"]), ("passed", ["SINK-1"])])
def test_a_clause_that_a_comparison_finds_broken_has_failed_with_the_test(outcome, clauses):
    """Even where the marker of the test does not name it: nothing is both passed and beyond its limit."""
    ledger = made_up(outcome)
    ledger.current = ledger.entries["0"]
    ledger.observe(compare.Measurement("SINK-4", "an operation", "float32", (), "", 5.0, 2.0, 6.0, 1.0))
    ledger.observe(compare.Measurement("SINK-5", "an operation", "float32", (), "", 1.0, 2.0, 2.0, 1.0))
    (port,) = summary_of(ledger)["backends"]
    assert [name for name, clause in port["clauses"].items() if clause["outcome"] == outcome] == clauses


def test_infinities_are_strings_in_json_and_drawn_on_the_page(tmp_path):
    ledger = made_up("failed")
    ledger.current = ledger.entries["0"]
    case = Logits("normal", 1.0, 3, (), 1)
    ledger.observe(compare.Measurement("SINK-4", "an operation", "float32", (), case, math.inf, 0.0, math.inf, 1.0))
    summary = summary_of(ledger)
    write_reports([str(tmp_path / "a.json"), str(tmp_path / "a.html")], summary)
    assert read(tmp_path / "a.json")["backends"][0]["tests"][0]["worst"]["error"] == "inf"
    assert "∞" in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert plain({"a": [math.nan, -math.inf, 1.5]}) == {"a": ["nan", "-inf", 1.5]}

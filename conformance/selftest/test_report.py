"""``--conformance-report``: verdicts, numbers, the page, bad paths. Clauses: CONF-1, CONF-2, CONF-4, ERR-2."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from conformance import compare
from conformance.agreement import projection
from conformance.clauses import clause_titles
from conformance.report import files as report_files
from conformance.report.files import check_report_paths, plain, write_reports
from conformance.report.tally import OWN, Entry, Ledger
from conformance.report.verdict import summarise
from conformance.selftest.port import make_port
from conformance.strategies import Logits
from conformance.tolerances import tolerance_for
from reference.errors import ConfigError, MissingPackageError

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from conformance.report.page import report_html, share_text

PACKAGE = Path(__file__).resolve().parents[1]
SINKHORN = PACKAGE / "test_sinkhorn_projection.py"
AGREES = f"{SINKHORN}::test_agrees_with_the_reference"
SECOND_INDEX = f"{PACKAGE / 'test_residual_mixing.py'}::test_contracts_over_the_second_index"
PORT, MUTANT = "conformance.selftest.port:make_port", "conformance.selftest.mutants:transposed_mixing"
DATES = ("date", "seconds")


def run(folder, *arguments):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *sys.path]),
    }
    command = [sys.executable, "-m", "conformance", "--quick", "-q", "-p", "no:cacheprovider", *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def read(path):
    """As another program would: without the constants that JSON does not have."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)


def report_of(folder, *arguments, status=0):
    done = run(folder, *arguments, "--conformance-report=out.html", "--conformance-report=out.json")
    assert done.returncode == status, done.stdout + done.stderr
    return read(folder / "out.json"), (folder / "out.html").read_text(encoding="utf-8"), done.stdout


@pytest.fixture(scope="module")
def passing(tmp_path_factory):
    """Two backends, one test."""
    return report_of(tmp_path_factory.mktemp("passing"), AGREES, "--backend=reference", f"--backend={PORT}")


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    return report_of(tmp_path_factory.mktemp("failing"), AGREES, SECOND_INDEX, f"--backend={MUTANT}", status=1)


# -- verdicts --


def made_up(*outcomes, own="passed"):
    """A ledger of tests of SINK-1, one for each outcome."""
    ledger = Ledger()
    for number, (backend, outcome) in enumerate([*(("port", outcome) for outcome in outcomes), (OWN, own)]):
        entry = Entry(f"t.py::test[{number}]", f"t.py::test[{number}]", backend, ("SINK-1",), True, None)
        entry.note(outcome, "<script>alert('a & b')</script>")
        ledger.entries[str(number)] = entry
    return ledger


def summary_of(ledger, incomplete=()):
    options = {"profile": "crma-ci", "examples_per_property": 150, "same_examples_every_time": True, "seed": None}
    options |= {"clause": [], "keyword": "", "markers": "", "tests_named": []}
    return summarise(ledger, {}, options, list(incomplete), time.time())


@pytest.mark.clause("CONF-1")
@pytest.mark.parametrize(
    ("outcomes", "incomplete", "own", "code", "verdict"),
    [
        (["passed"], [], "passed", "conforms", "conforms to CRMA specification 0.2"),
        (["passed", "not offered"], [], "passed", "conforms", "conforms to CRMA specification 0.2"),
        (["passed", "gap"], [], "passed", "gaps", "conforms to CRMA specification 0.2 but for 1 declared gap"),
        (["gap", "gap"], [], "passed", "gaps", "conforms to CRMA specification 0.2 but for 2 declared gaps"),
        (["passed", "failed"], [], "passed", "fails", "does not conform: 1 test failed, of 1 clause"),
        (["gap", "failed", "failed"], [], "passed", "fails", "does not conform: 2 tests failed, of 1 clause"),
        (["passed"], ["40 examples"], "passed", "none", "no verdict: partial run"),
        (["gap"], ["40 examples"], "passed", "none", "no verdict: partial run"),
        (["failed"], ["40 examples"], "passed", "fails", "does not conform: 1 test failed, of 1 clause"),
        (["passed"], [], "failed", "none", "no verdict: 1 test of the suite itself failed"),
    ],
)
def test_verdicts(outcomes, incomplete, own, code, verdict):
    (port,) = summary_of(made_up(*outcomes, own=own), incomplete)["backends"]
    assert (port["verdict_code"], port["verdict"]) == (code, verdict)


@pytest.mark.clause("CONF-1")
@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["passed", "failed", "gap"], "failed"),
        (["passed", "gap"], "gap"),
        (["passed", "not run"], "not run"),
        (["passed", "not offered"], "passed"),
        (["not offered"], "not offered"),
    ],
)
def test_a_clause_is_as_good_as_its_tests(outcomes, expected):
    (port,) = summary_of(made_up(*outcomes))["backends"]
    assert port["clauses"]["SINK-1"]["outcome"] == expected
    assert port["clauses"]["SINK-2"]["outcome"] == "not run"


@pytest.mark.clause("CONF-1", "CONF-2")
def test_a_quick_run_of_one_test_is_no_proof_and_says_so(passing):
    data, page, printed = passing
    assert not data["complete"]
    assert any("40 examples" in reason for reason in data["incomplete"])
    assert any("tests named" in reason for reason in data["incomplete"])
    assert any("test_residual_mixing.py" in reason for reason in data["incomplete"])
    assert [port["verdict"] for port in data["backends"]] == ["no verdict: partial run"] * 2
    assert "PARTIAL RUN: NO PROOF OF CONFORMANCE" in page
    assert f"{PORT}: no verdict: partial run" in printed
    assert [port["name"] for port in data["backends"]] == ["reference", PORT]
    reference, port = (port["identity"] for port in data["backends"])
    assert (reference["parameter_dtype"], port["parameter_dtype"]) == ("float64", "float32")
    assert port["implementation"] == make_port().name
    assert port["version"] in page


@pytest.mark.clause("CONF-1")
def test_a_wrong_port_fails_in_its_clause_and_beyond_its_tolerance(failing):
    data, page, printed = failing
    (port,) = data["backends"]
    assert port["verdict"].startswith("does not conform: 1 test failed")
    assert "does not conform" in printed
    assert {name for name, clause in port["clauses"].items() if clause["outcome"] == "failed"} >= {"MIX-3"}
    assert port["clauses"]["SINK-4"]["outcome"] == "passed"
    assert port["clauses"]["MIX-3"]["worst_share"] > 1 > port["clauses"]["SINK-4"]["worst_share"]
    (test,) = (test for test in port["tests"] if test["outcome"] == "failed")
    assert test["id"] == f"test_residual_mixing.py::test_contracts_over_the_second_index[{MUTANT}]"
    assert test["worst"]["error"] > test["worst"]["allowed"] > 0
    assert "too far from the reference" in test["message"]
    row = re.search(r'<tr id="MIX-3">.*?</tr>', page, re.DOTALL)
    assert row is not None
    assert "✗ failed" in row[0]
    assert "too far from the reference" in page


@pytest.mark.clause("CONF-1", "CONF-3")
def test_a_declared_gap_is_listed_with_reason_and_link(tmp_path):
    name = f"test_residual_mixing.py::test_contracts_over_the_second_index[{MUTANT}]"
    (tmp_path / "gaps.toml").write_text(
        f'[[gap]]\ntest = "{name}"\nreason = "wrong <way> round"\nlink = "https://example.org/7"\n'
    )
    data, page, _ = report_of(tmp_path, SECOND_INDEX, f"--backend={MUTANT}", "--gaps=gaps.toml")
    (port,) = data["backends"]
    assert port["counts"]["gap"] == 1
    assert port["clauses"]["MIX-3"]["outcome"] == "gap"
    assert [(t["id"], t["reason"], t["link"]) for t in port["tests"]] == [
        (name, "wrong <way> round", "https://example.org/7")
    ]
    assert "wrong &lt;way&gt; round" in page


@pytest.mark.clause("CONF-1")
def test_a_run_that_stops_early_is_partial(tmp_path):
    data, _, _ = report_of(tmp_path, SECOND_INDEX, AGREES, f"--backend={MUTANT}", "-x", status=1)
    assert any("stopped before 1 of its tests" in reason for reason in data["incomplete"])


# -- numbers --


def test_keys_of_the_schema(passing):
    data, _, _ = passing
    assert (data["schema"], data["schema_version"], data["spec_version"]) == ("crma-conformance-report", 1, "0.2")
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
    assert {point["magnitude"] for point in line["points"]} >= {0.0, 1.0, 50.0}


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


# -- the page --


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "srcset", "data", "action", "style")]


def test_the_page_has_every_clause_and_fetches_nothing(passing):
    page = passing[1]
    parser = Links()
    parser.feed(page)
    assert not parser.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    outside = [link for link in parser.links if not re.match(r"data:image/svg\+xml;base64,|width:[\d.]+%$", link)]
    assert outside == ["https://arxiv.org/abs/2606.00382"]
    assert "url(" not in page
    assert "@import" not in page
    for name in clause_titles():
        assert f'<tr id="{name}">' in page, name
    assert "spec/95-out-of-scope.md" in page


def test_the_page_escapes_what_it_is_given():
    page = report_html(summary_of(made_up("failed", "gap", "not offered")))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 3


def test_a_run_without_a_backend_has_a_page():
    page = report_html(summary_of(made_up()))
    assert "No implementation was tested" in page


def test_shares_in_words():
    shares = (None, 0.0, 1e-5, 0.123, 1.0, 1.5, 1e6, math.inf)
    assert [share_text(s) for s in shares] == ["–", "0 %", "< 1 %", "12 %", "100 %", "1.5 ×", "1.0e+06 ×", "∞"]


# -- paths --


@pytest.mark.clause("ERR-2")
@pytest.mark.parametrize("name", ["out.pdf", "out", "no_such_folder/out.html", "folder.json", ""])
def test_paths_that_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ConfigError, match=r"--conformance-report: got .*; allowed: .* Try: "):
        check_report_paths(["good.json", name])
    check_report_paths(["good.json", "good.html"])


@pytest.mark.clause("ERR-2")
def test_without_jinja2_there_is_json(monkeypatch):
    monkeypatch.setattr(report_files, "find_spec", lambda name: None)
    check_report_paths(["out.json"])
    with pytest.raises(MissingPackageError, match="jinja2"):
        check_report_paths(["out.html"])


@pytest.mark.clause("ERR-2")
def test_a_file_that_cannot_be_written_after_all_is_one_clear_error(tmp_path):
    (tmp_path / "out.json").mkdir()
    with pytest.raises(ConfigError, match=r"out\.json"):
        write_reports([str(tmp_path / "out.json")], summary_of(made_up("passed")))


@pytest.mark.clause("CONF-4", "ERR-2")
def test_a_bad_path_is_refused_before_the_tests(tmp_path):
    done = run(tmp_path, AGREES, "--conformance-report=absent/out.html")
    printed = done.stdout + done.stderr
    assert done.returncode == 4, printed
    assert "Traceback" not in printed
    assert printed.count("allowed:") == 1
    assert "passed" not in printed

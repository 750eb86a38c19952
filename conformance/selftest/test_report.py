"""``--conformance-report``: verdicts, and paths that are refused. Clauses: CONF-1..CONF-4, ERR-2."""

import re

import pytest

from conformance.report import files as report_files
from conformance.report.files import check_report_paths, write_reports
from conformance.selftest.port import make_port
from conformance.selftest.programs import assert_one_clear_error
from conformance.selftest.reports import AGREES, MUTANT, PORT, SECOND_INDEX, made_up, report_of, run_suite, summary_of
from reference.errors import ConfigError, MissingPackageError

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    return report_of(tmp_path_factory.mktemp("failing"), AGREES, SECOND_INDEX, f"--backend={MUTANT}", status=1)


# -- verdicts --


@pytest.mark.clause("CONF-1")
@pytest.mark.parametrize(
    ("outcomes", "incomplete", "own", "code", "verdict"),
    [
        (["passed"], [], "passed", "conforms", "conforms to CRMA specification 0.3"),
        (["passed", "not offered"], [], "passed", "conforms", "conforms to CRMA specification 0.3"),
        (["passed", "gap"], [], "passed", "gaps", "conforms to CRMA specification 0.3 but for 1 declared gap"),
        (["gap", "gap"], [], "passed", "gaps", "conforms to CRMA specification 0.3 but for 2 declared gaps"),
        (["passed", "failed"], [], "passed", "fails", "does not conform: 1 test failed, of 1 clause"),
        (["gap", "failed", "failed"], [], "passed", "fails", "does not conform: 2 tests failed, of 1 clause"),
        (["passed"], ["25 examples"], "passed", "none", "no verdict: partial run"),
        (["gap"], ["25 examples"], "passed", "none", "no verdict: partial run"),
        (["failed"], ["25 examples"], "passed", "fails", "does not conform: 1 test failed, of 1 clause"),
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
    assert any("25 examples" in reason for reason in data["incomplete"])
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
    done = run_suite(tmp_path, AGREES, "--conformance-report=absent/out.html")
    assert_one_clear_error(done, "--conformance-report")
    assert "passed" not in done.stdout

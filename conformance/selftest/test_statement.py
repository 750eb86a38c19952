"""Statements of conformance: what they say, and what makes them void. Clauses: CONF-1, CONF-9."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from backends import load_backend
from conformance import statement
from conformance.gaps import PACKAGE, Gap
from conformance.selftest.test_processes import run
from conformance.statement import check_statement, main, statement_of, write_statement
from reference.errors import CRMAError

pytestmark = pytest.mark.clause("CONF-9")
COUNTS = {"passed": 1200, "failed": 0, "skipped": 3, "xfailed": 0, "xpassed": 0, "error": 0}
GAP = Gap("test_refusals.py::test_x[reference]", "not written", "#1")


def config_of(args=(str(PACKAGE),), **options):
    given = {"--backend": ["reference"], "--profile": None, "--quick": False, **options}
    return SimpleNamespace(
        args=list(args),
        getoption=lambda name, default=None: given.get(name, default),
        invocation_params=SimpleNamespace(args=("--backend=reference",)),
    )


def stated(gaps=(), counts=COUNTS, status=0, **options):
    return statement_of(config_of(**options), load_backend("reference"), list(gaps), counts, status)


@pytest.mark.clause("CONF-1")
@pytest.mark.parametrize(
    ("outcome", "case"),
    [
        ("conforms", {}),
        ("conforms", {"args": [str(path) for path in PACKAGE.glob("test_*.py")]}),
        ("conforms but for", {"gaps": [GAP], "counts": {**COUNTS, "xfailed": 1}}),
        ("does not conform", {"status": 1, "counts": {**COUNTS, "failed": 1}}),
        ("proves nothing", {"status": 4}),
        ("proves nothing", {"status": 2}),
        ("proves nothing", {"counts": {**COUNTS, "passed": 0}}),
        ("proves nothing", {"--quick": True}),
        ("proves nothing", {"--profile": "random"}),
        ("proves nothing", {"keyword": "adapter"}),
        ("proves nothing", {"clause": ["SINK-1"]}),
        ("proves nothing", {"deselect": ["x"]}),
        ("proves nothing", {"maxfail": 1}),
        ("proves nothing", {"args": [str(PACKAGE / "test_refusals.py")]}),
        ("proves nothing", {"args": [f"{PACKAGE}::test_x"]}),
    ],
    ids=str,
)
def test_only_a_whole_run_says_that_a_port_conforms(outcome, case):
    assert stated(**case)["outcome"] == outcome


def test_a_statement_is_what_was_written(tmp_path, capsys):
    path = tmp_path / "statement.json"
    write_statement(str(path), stated(gaps=[GAP]))
    assert check_statement(str(path)) == json.loads(path.read_text())
    assert main([str(path)]) == 0
    assert "conforms but for" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": "conforms"},
        {"counts": {**COUNTS, "failed": 1}},
        {"profile": "quick"},
        {"suite": "0" * 64},
        {"format": "other"},
        {"format_version": 2},
        {"more": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("signed", [False, True])
def test_a_statement_that_was_changed_is_void(change, signed, tmp_path, capsys):
    """Also where its own digest was made to fit, as far as it contradicts itself or the suite."""
    content = {**stated(gaps=[GAP], counts={**COUNTS, "xfailed": 1}), **change}
    if signed:
        content["sha256"] = statement._own_digest({k: v for k, v in content.items() if k != "sha256"})
    path = tmp_path / "statement.json"
    path.write_text(json.dumps(content))
    with pytest.raises(CRMAError):
        check_statement(str(path))
    assert main([str(path)]) == 4
    assert "statement" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": "crma-conformance-statement"}'])
def test_what_is_no_statement_is_one_message(text, tmp_path, capsys):
    path = tmp_path / "statement.json"
    path.write_text(text)
    assert main([str(path)]) == 4
    assert capsys.readouterr().err.startswith("ERROR: ")
    assert main([]) == main([str(tmp_path / "none")]) == 4


def test_the_digest_of_the_suite_is_of_what_decides(monkeypatch, tmp_path):
    before = statement.suite_digest()
    assert before == statement.suite_digest()
    read = Path.read_bytes
    for name in ("test_design.py", "layouts.json", "residual_mixing.py", "tolerances.py"):
        monkeypatch.setattr(Path, "read_bytes", lambda path, name=name: read(path) + b"#" * (path.name == name))
        assert statement.suite_digest() != before, name
    monkeypatch.setattr(Path, "read_bytes", read)


@pytest.mark.parametrize("processes", ["0", "2"])
def test_a_run_writes_it(processes, tmp_path):
    options = ["-q", "-n", processes, "--backend=reference", "test_refusals.py", "--statement=port.json"]
    code, printed = run(["-m", "conformance", *options], tmp_path)
    assert code == 0, printed
    content = check_statement(str(tmp_path / "port.json"))
    assert (content["outcome"], content["counts"]["failed"]) == ("proves nothing", 0)
    assert content["counts"]["passed"] > 50
    assert content["backend"]["device"] == "cpu"


def test_the_example_of_a_ports_own_ci_runs(tmp_path):
    """Its commands as they stand, with another port and a part of the tests."""
    yaml = pytest.importorskip("yaml")
    steps = yaml.safe_load((PACKAGE / "examples" / "ci.yml").read_text())["jobs"]["conformance"]["steps"]
    commands = [step["run"] for step in steps if not step.get("run", "pip").startswith("pip")]
    assert len(commands) == 2
    port = "conformance.selftest.port:make_port"
    suite = commands[0].replace("my_port.crma:make_backend", port).replace("crma conformance", "-m conformance").split()
    code, printed = run([*suite, "-q", "-n", "0", "test_refusals.py"], tmp_path)
    assert code == 0, printed
    code, printed = run(commands[1].removeprefix("python ").split(), tmp_path)
    assert code == 0, printed
    assert "numpy-port" in printed

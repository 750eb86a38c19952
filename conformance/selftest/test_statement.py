"""Statements of conformance: what they say, and what makes them void. Clauses: CONF-1, CONF-9."""

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings

from backends import load_backend
from conformance import statement
from conformance.gaps import PACKAGE, Gap
from conformance.profiles import PROFILES
from conformance.scenes import SCENES
from conformance.selftest.programs import EXITS, ROOT
from conformance.selftest.test_processes import run
from conformance.statement import (
    COUNTED,
    check_statement,
    is_whole,
    main,
    size_of_suite,
    statement_of,
    write_statement,
)
from reference.errors import CRMAError

pytestmark = pytest.mark.clause("CONF-9")
IDS = [f"conformance/{test}[reference-{i}]" for test, count in size_of_suite().items() for i in range(count)]
ONE_EACH = list({test.partition("[")[0]: test for test in IDS}.values())  # one test of each function
COUNTS = {**dict.fromkeys(COUNTED, 0), "passed": len(IDS) - 3, "skipped": 3}
SKIPPED = {"not offered: adapter_autodiff": 3}
GAP = Gap("test_refusals.py::test_sizes_that_do_not_fit_are_refused[x]", "not written", "#1")
WITH_GAP = {**COUNTS, "passed": len(IDS) - 4, "xfailed": 1}


def config_of(**options):
    given = {"--backend": ["reference"], "--profile": None, "--quick": False, **options}
    return SimpleNamespace(
        getoption=lambda name, default=None: given.get(name, default),
        invocation_params=SimpleNamespace(args=("--backend=reference",)),
    )


def own_digest(content):
    return statement._own_digest({key: value for key, value in content.items() if key != "sha256"})


def stated(gaps=(), counts=COUNTS, status=0, *, whole=True, profile=None):
    port, options = load_backend("reference"), {"--profile": profile}
    return statement_of(config_of(**options), port, list(gaps), counts, SKIPPED, status, whole=whole)


@pytest.mark.clause("CONF-1")
@pytest.mark.parametrize(
    ("outcome", "case"),
    [
        ("conforms", {}),
        ("conforms but for", {"gaps": [GAP], "counts": WITH_GAP}),
        ("does not conform", {"status": 1, "counts": {**COUNTS, "failed": 1}}),
        ("proves nothing", {"status": 4}),
        ("proves nothing", {"status": 2}),
        ("proves nothing", {"counts": {**COUNTS, "passed": 0}}),
        ("proves nothing", {"whole": False}),
        ("proves nothing", {"counts": {**COUNTS, "passed": len(IDS) - 4}}),
        ("proves nothing", {"gaps": [GAP]}),
        ("proves nothing", {"profile": "quick"}),
    ],
    ids=str,
)
def test_only_a_whole_run_says_that_a_port_conforms(outcome, case):
    assert stated(**case)["outcome"] == outcome


@pytest.mark.clause("CONF-1")
@pytest.mark.parametrize(
    ("whole", "collected", "counts", "options"),
    [
        (True, IDS, COUNTS, {}),
        (True, IDS, WITH_GAP, {}),
        (False, [*IDS, IDS[0]], {**COUNTS, "xfailed": 1}, {}),
        (False, IDS, COUNTS, {"--quick": True}),
        (False, IDS, COUNTS, {"--profile": "random"}),
        (False, IDS, {**COUNTS, "passed": len(IDS) - 4}, {}),
        (False, IDS[1:], {**COUNTS, "passed": len(IDS) - 4}, {}),
        (False, [*IDS[1:], IDS[2]], COUNTS, {}),
        (False, ONE_EACH, {**COUNTS, "passed": len(ONE_EACH) - 3}, {}),
        (True, [test.replace("[reference", "[node a/port.js [1]") for test in IDS], COUNTS, {}),
        (False, [], {**COUNTS, "passed": 0, "skipped": 0}, {}),
    ],
)
def test_a_run_is_whole_if_every_test_was_collected_and_has_run(whole, collected, counts, options):
    with profile(PROFILES["full"]):
        assert is_whole(config_of(**options), collected, counts) is whole
    with profile(PROFILES["quick"]):  # as --hypothesis-profile can make it
        assert not is_whole(config_of(**options), collected, counts)


@contextmanager
def profile(name):
    before = settings.get_current_profile_name()
    settings.load_profile(name)
    yield
    settings.load_profile(before)


@pytest.mark.clause("CONF-1")
@pytest.mark.parametrize(
    ("outcome", "options"),
    [
        ("conforms", []),
        ("conforms", ["-n", "2"]),
        ("proves nothing", ["-n", "2", "-k", "refused"]),
        ("proves nothing", ["--clause=MIX-4"]),
        ("proves nothing", [f"test_refusals.py::test_a_gate_per_stream_is_refused[reference-{s}]" for s in SCENES]),
        ("proves nothing", ["test_refusals.py::test_a_gate_per_stream_is_refused[reference-one stream]"]),
        ("proves nothing", ["--deselect", "conformance/test_refusals.py::test_a_gate_per_stream_is_refused"]),
        ("proves nothing", ["--hypothesis-profile=crma-quick"]),
        ("proves nothing", ["-n", "2", "-p", "leaves_out"]),
    ],
)
def test_whatever_leaves_a_test_out_is_seen(outcome, options, tmp_path):
    """A suite of one file stands for the whole."""
    (tmp_path / "leaves_out.py").write_text("def pytest_collection_modifyitems(items):\n    del items[-1]\n")
    (tmp_path / "one_file.py").write_text(ONE_FILE)
    command = ["-m", "one_file", "-q", "-n", "0", "--backend=reference", "--statement=port.json", f"--rootdir={ROOT}"]
    code, printed = run([*command, *options], tmp_path)
    assert code == 0, printed
    assert json.loads((tmp_path / "port.json").read_text())["outcome"] == outcome, printed


#: ``size_of_suite`` counts those of one file alone, and ``python -m conformance`` is given it
ONE_FILE = """
import sys
from collections import Counter
from conformance import statement
from conformance.__main__ import main

whole = statement.size_of_suite()
statement.size_of_suite = lambda: Counter({test: n for test, n in whole.items() if "test_refusals" in test})
paths = [] if any(argument.startswith("test_") for argument in sys.argv) else ["test_refusals.py"]
sys.exit(main([*sys.argv[1:], *paths]))
"""


def test_a_statement_is_what_was_written(tmp_path, capsys):
    path = tmp_path / "statement.json"
    write_statement(str(path), stated(gaps=[GAP], counts=WITH_GAP))
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
        {"counts": {**WITH_GAP, "passed": 1}},
        {"counts": {**WITH_GAP, "passed": 0, "skipped": len(IDS) - 1}, "skipped": {next(iter(SKIPPED)): len(IDS) - 1}},
        {"counts": {**WITH_GAP, "passed": len(IDS) + 2, "skipped": -3}, "skipped": {next(iter(SKIPPED)): -3}},
        {"counts": {**COUNTS, "passed": 1, "skipped": len(IDS) - 2, "xfailed": 1}},
        {"counts": COUNTS},
        {"counts": [1]},
        {"counts": {"passed": 1}},
        {"gaps": [{**GAP._asdict(), "test": "a"}]},
        {"gaps": ["a"]},
        {"skipped": {}},
        {"skipped": {"not offered: save_state": 3}},
        {"skipped": {"it was late": 3}},
        {"skipped": 3},
        {"backend": "x"},
        {"command": ["python", "-m", "conformance", "-k", "x"]},
        {"command": ["python", "-m", "conformance", "--quick"]},
        {"command": ["python", "-m", "conformance", "test_refusals.py::test_x"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("signed", [False, True])
def test_a_statement_that_was_changed_is_void(change, signed, tmp_path, capsys):
    """Also where its own digest was made to fit, as far as it contradicts itself or the suite."""
    content = {**stated(gaps=[GAP], counts=WITH_GAP), **change}
    if signed:
        content["sha256"] = own_digest(content)
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
    for name in ("test_design.py", "layouts.json", "residual_mixing.py", "tolerances.py", "port.py", "state_file.py"):
        monkeypatch.setattr(Path, "read_bytes", lambda path, name=name: read(path) + b"#" * (path.name == name))
        assert statement.suite_digest() != before, name
    monkeypatch.setattr(Path, "read_bytes", read)


def test_a_statement_of_another_run_is_not_left_behind(tmp_path):
    """A port that dies leaves none, and a file that is no statement is not overwritten."""
    path = tmp_path / "port.json"
    write_statement(str(path), stated())
    (tmp_path / "my_port.py").write_text(EXITS)
    options = ["-q", "-n", "0", "test_refusals.py", f"--statement={path}"]
    code, _ = run(["-m", "conformance", "--backend=my_port:Exits", *options], tmp_path)
    assert code == 4
    assert not path.exists() or json.loads(path.read_text())["outcome"] == "proves nothing"
    path.write_text("a letter")
    code, printed = run(["-m", "conformance", *options], tmp_path)
    assert code == 4
    assert "no statement" in printed
    assert path.read_text() == "a letter"


def test_a_statement_steers_no_terminal(tmp_path, capsys):
    content = stated(gaps=[GAP], counts=WITH_GAP)
    content["backend"]["name"] = "\x1b[2Jport"
    content["sha256"] = own_digest(content)
    (tmp_path / "port.json").write_text(json.dumps(content))
    assert main([str(tmp_path / "port.json")]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.clause("CONF-3", "CONF-4")
def test_nothing_takes_the_comparisons_out_of_a_run(tmp_path, monkeypatch):
    """Neither Python's -O, which leaves assert out, nor --runxfail, under which a closed gap fails nothing."""
    gaps = tmp_path / "gaps.toml"
    gaps.write_text('[[gap]]\ntest = "test_refusals.py::test_x"\nreason = "a"\nlink = "b"\n')
    code, printed = run(["-m", "conformance", "test_refusals.py", f"--gaps={gaps}", "--runxfail"], tmp_path)
    assert code == 4
    assert "--runxfail" in printed
    monkeypatch.setenv("PYTHONOPTIMIZE", "1")
    for command in (["-m", "conformance"], ["-m", "pytest", "-p", "conformance.plugin", str(PACKAGE)]):
        code, printed = run([*command, "--assert=plain"], tmp_path)
        assert code == 4, printed
        assert "PYTHONOPTIMIZE" in printed


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

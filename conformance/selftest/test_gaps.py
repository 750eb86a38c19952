"""``--gaps`` and ``--clause``: strict, exact, and one clear error for a mistake. Clauses: CONF-1, CONF-3, CONF-4."""

import re

import pytest

from conformance.gaps import Gap, read_gaps
from conformance.selftest.programs import PACKAGE, PYTEST, ROOT, SUITE, assert_one_clear_error, run
from reference.errors import ConfigError

WRONG = "conformance.selftest.mutants:transposed_mixing"
CAUGHT = f"test_residual_mixing.py::test_a_cycle_moves_stream_j_to_stream_i[{WRONG}]"
FILE = PACKAGE / "test_residual_mixing.py"


def gaps_file(folder, *tests):
    entries = [f'[[gap]]\ntest = "{t}"\nreason = "M is transposed"\nlink = "https://example.org/1"\n' for t in tests]
    (folder / "gaps.toml").write_text("\n".join(entries))
    return f"--gaps={folder / 'gaps.toml'}"


@pytest.mark.clause("CONF-3")
@pytest.mark.parametrize("command", [(*PYTEST, FILE), (*SUITE, FILE)], ids=["pytest", "module"])
def test_a_declared_gap_fails_as_expected(tmp_path, command):
    done = run(tmp_path, *command, f"--backend={WRONG}", gaps_file(tmp_path, CAUGHT), "-k", "cycle", "-rx")
    assert done.returncode == 0, done.stdout
    assert "1 xfailed" in done.stdout
    assert "M is transposed (https://example.org/1)" in done.stdout


@pytest.mark.clause("CONF-3", "CONF-4")
def test_a_gap_that_passes_fails_the_run(tmp_path):
    right = CAUGHT.replace(WRONG, "reference")
    done = run(ROOT, *PYTEST, FILE, "--backend=reference", gaps_file(tmp_path, right), "-k", "cycle")
    assert done.returncode == 1
    assert "XPASS(strict)" in done.stdout


@pytest.mark.clause("CONF-3", "CONF-4")
@pytest.mark.parametrize(
    ("test", "why"),
    [
        ("test_backend_interface.py::test_device_is_the_one_that_the_name_promises[WRONG]", "promises no device"),
        ("test_gradients.py::test_closed_form_agrees_with_the_ports_own_autodiff[WRONG-x]", "not offered"),
    ],
)
def test_a_gap_that_is_skipped_fails_the_run(tmp_path, test, why):
    """Before the test itself or within it: what is not offered need not be declared, and nothing was shown."""
    test = test.replace("WRONG", WRONG)
    done = run(tmp_path, *SUITE, test, f"--backend={WRONG}", gaps_file(tmp_path, test), "--quick")
    assert done.returncode == 1, done.stdout
    assert "a declared gap that is skipped" in done.stdout
    assert why in done.stdout


@pytest.mark.clause("CONF-3", "CONF-4")
def test_a_gap_on_a_test_that_a_marker_skips_fails_the_run(tmp_path):
    (tmp_path / "test_own.py").write_text(
        "import pytest\n@pytest.mark.skip(reason='too late')\n"
        "@pytest.mark.parametrize('backend', ['a'])\ndef test_own(backend):\n    pass\n"
    )
    done = run(tmp_path, *PYTEST, "test_own.py", gaps_file(tmp_path, "test_own.py::test_own[a]"))
    assert done.returncode == 1, done.stdout
    assert "too late. Take it from the gaps" in done.stdout


@pytest.mark.clause("CONF-3")
def test_a_gap_hides_no_other_test(tmp_path):
    """Not even another parameter of the same test."""
    backend = f"--backend={WRONG}"
    done = run(tmp_path, *PYTEST, FILE, backend, gaps_file(tmp_path, CAUGHT), "-k", "cycle or contracts", "--quick")
    assert done.returncode == 1
    assert re.search(r"1 failed.* 1 xfailed", done.stdout), done.stdout


@pytest.mark.clause("CONF-3", "CONF-4", "ERR-2")
@pytest.mark.parametrize(
    ("test", "part"),
    [
        (CAUGHT.replace("cycle", "circle"), "test_a_cycle_moves_stream_j_to_stream_i"),
        (CAUGHT.partition("[")[0], "the nearest is"),
        (CAUGHT.replace("residual_mixing", "residual_mixer"), "residual_mixer"),
        ("test_a_cycle_moves_stream_j_to_stream_i", "exact id"),
        ("test_residual_mixing.py::test_a_gate_per_stream_would_expand", "that a backend of this run is given"),
    ],
)
def test_an_id_that_no_test_has_is_one_clear_error(tmp_path, test, part):
    done = run(tmp_path, *PYTEST, FILE, f"--backend={WRONG}", gaps_file(tmp_path, test), "-k", "cycle")
    assert_one_clear_error(done, "gaps.toml", part)


@pytest.mark.clause("CONF-3")
def test_gaps_in_files_that_are_not_run_are_left_alone(tmp_path):
    other = f"test_gradients.py::test_no_such_test[{WRONG}]"
    gaps = gaps_file(tmp_path, CAUGHT, other)
    done = run(tmp_path, *PYTEST, FILE, f"--backend={WRONG}", gaps, "-k", "cycle")
    assert done.returncode == 0, done.stdout
    one = f"{FILE}::test_a_cycle_moves_stream_j_to_stream_i"
    assert run(tmp_path, *PYTEST, one, f"--backend={WRONG}", gaps).returncode == 0


@pytest.mark.clause("CONF-3", "ERR-2")
@pytest.mark.parametrize(
    ("content", "part"),
    [
        ('[[gap]]\ntest = "a"\nreason = "b"\n', "entry 1"),
        ('[[gap]]\ntest = "a"\nreason = ""\nlink = "c"\n', "entry 1"),
        ('[[gap]]\ntest = 3\nreason = "b"\nlink = "c"\n', "entry 1"),
        ('[[gap]]\ntest = "a"\nreason = "b"\nlink = "c"\nstrict = false\n', "strict"),
        ('[gap]\ntest = "a"\n', "other keys"),
        ('[[gaps]]\ntest = "a"\n', "other keys: gaps"),
        ("not toml", "gaps.toml"),
        ('[[gap]]\ntest = "a"\nreason = "b"\nlink = "c"\n' * 2, "more than once"),
    ],
)
def test_a_gaps_file_of_another_form_is_refused(tmp_path, content, part):
    (tmp_path / "gaps.toml").write_text(content)
    with pytest.raises(ConfigError, match=part):
        read_gaps(tmp_path / "gaps.toml")


@pytest.mark.clause("CONF-4", "ERR-2")
def test_a_gaps_file_that_is_missing_is_one_clear_error(tmp_path):
    done = run(tmp_path, *PYTEST, FILE, f"--gaps={tmp_path / 'none.toml'}")
    assert_one_clear_error(done, "none.toml", "No such file")


def test_an_empty_file_declares_nothing(tmp_path):
    (tmp_path / "gaps.toml").write_text("")
    assert read_gaps(tmp_path / "gaps.toml") == []
    assert Gap._fields == ("test", "reason", "link")


@pytest.mark.clause("CONF-1")
def test_clause_selects_its_tests(tmp_path):
    done = run(tmp_path, *SUITE, "--clause=MIX-3", "--clause=BACK-4", "--quick", "-v")
    assert done.returncode == 0, done.stdout
    for name in ("test_contracts_over_the_second_index", "test_a_cycle", "test_device_is_the_one"):
        assert name in done.stdout
    assert re.search(r" \d\d passed, .*1\d\d\d deselected", done.stdout), done.stdout


@pytest.mark.clause("CONF-4", "ERR-2")
def test_a_clause_that_is_none_is_one_clear_error(tmp_path):
    assert_one_clear_error(run(tmp_path, *SUITE, "--clause=SINK3"), "--clause", "SINK3")

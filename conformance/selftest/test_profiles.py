"""What hypothesis draws: how many cases, by which profile, and the same ones everywhere. Clauses: CONF-1, CONF-4."""

import shutil

import pytest

from conformance import profiles
from conformance.selftest.programs import PYTEST, ROOT, SUITE, assert_one_clear_error, run

PORT = """
import os
from hashlib import sha256
from itertools import count
from pathlib import Path
import conformance
from conformance.selftest.port import NumpyPort

LITERALS = LITERALS_HERE
calls = count(1)

class make(NumpyPort):
    def adapter_forward(self, x, logits, gate, *others):
        with open("drawn.txt", "a") as drawn:
            print(float(gate), sha256(x.tobytes() + logits.tobytes()).hexdigest(), file=drawn)
        Path("suite.txt").write_text(conformance.__file__)
        if next(calls) == 300:
            os._exit(0)  # of 5000 examples so many will do
        return super().adapter_forward(x, logits, gate, *others)
"""
TEST = "test_residual_mixing.py::test_agrees_with_the_reference"


@pytest.mark.clause("CONF-1")
@pytest.mark.parametrize(
    ("options", "profile", "examples"),
    [
        ((), "crma-ci", 150),
        (("--quick",), "crma-quick", 25),
        (("--hypothesis-profile=crma-random",), "crma-random", 5000),
        (("--hypothesis-profile=crma-random", "--quick"), "crma-random", 5000),
    ],
)
def test_hypothesis_profiles(options, profile, examples, tmp_path):
    (tmp_path / "test_profile.py").write_text(
        "from hypothesis import settings\ndef test_profile():\n"
        f"    chosen = settings()\n    assert chosen.max_examples == {examples}\n"
        "    assert chosen.deadline is None and chosen.database is None\n"
        f"    assert chosen.derandomize == {profile != 'crma-random'}\n"
    )
    done = run(tmp_path, *PYTEST, "test_profile.py", *options)
    assert done.returncode == 0, done.stdout


@pytest.mark.clause("CONF-4", "ERR-2")
@pytest.mark.parametrize("command", [PYTEST, SUITE], ids=["pytest", "module"])
def test_a_profile_that_does_not_exist_is_one_clear_error(command, tmp_path):
    (tmp_path / "test_profile.py").write_text("def test_profile():\n    pass\n")
    done = run(tmp_path, *command, "test_profile.py", "--hypothesis-profile=nonsense")
    assert_one_clear_error(done, "--hypothesis-profile", "'nonsense'", "crma-ci, crma-quick, crma-random")


@pytest.mark.clause("CONF-1")
@pytest.mark.parametrize(
    ("options", "status"),
    [([], 0), (["--hypothesis-profile=crma-random", "--hypothesis-seed=7"], 4)],
    ids=["ci", "random"],
)
def test_a_checkout_and_a_wheel_draw_the_same_cases(options, status, tmp_path):
    """And another port the same as one: no literal of either is among the numbers drawn."""
    drawn = []
    for name, literals in (("checkout", "1.5, 2.5"), ("other", "[-7.25, 3.125, 11.0625]"), ("site-packages", "0")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "my_port.py").write_text(PORT.replace("LITERALS_HERE", literals))
        if name == "site-packages":
            for package in ("conformance", "backends", "reference", "spec"):
                shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        done = run(folder, *SUITE, TEST, "--backend=my_port:make", *options)
        assert done.returncode == status, done.stdout + done.stderr
        assert ((folder / "suite.txt").read_text().startswith(str(folder))) == (name == "site-packages")
        drawn.append((folder / "drawn.txt").read_text().splitlines())
    assert len(drawn[0]) >= 150
    assert drawn[0] == drawn[1] == drawn[2]


@pytest.mark.clause("CONF-1")
def test_hypothesis_without_these_literals_is_left_alone(monkeypatch):
    """Its versions before 6.131 have none, and a later one may keep them elsewhere."""
    providers = pytest.importorskip("hypothesis.internal.conjecture.providers")
    kept = providers._get_local_constants
    with profiles.same_cases_everywhere():
        assert providers._get_local_constants is not kept
        assert not list(providers._get_local_constants())
    assert providers._get_local_constants is kept
    monkeypatch.delattr(providers, "_get_local_constants")
    with profiles.same_cases_everywhere():
        assert not hasattr(providers, "_get_local_constants")

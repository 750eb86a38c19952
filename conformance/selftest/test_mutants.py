"""The suite is run against ports that are wrong: it must say so, by the tests made for it, and by a comparison.

Here those that are wrong everywhere: in the quick profile, and what that misses in the full one. Those that are wrong
on a few layouts are in test_level_mutants.py. ``python -m conformance.selftest.mutant_runs`` tries all of them in both.
"""

import inspect
import re
from functools import cache, partial

import pytest

from conformance.selftest import mutants
from conformance.selftest.mutant_runs import BATCH, TESTS, assert_caught, missed, run_suite, try_mutants
from conformance.selftest.mutants import MUTANTS
from conformance.selftest.port import NumpyPort

EVERYWHERE = tuple(mutant for mutant in MUTANTS if not mutant.layouts)


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """Name of a mutant and a profile -> the run that it was in."""
    folder = tmp_path_factory.mktemp("mutants")

    @cache
    def batch_of(index, profile):
        batch = EVERYWHERE[index * BATCH : (index + 1) * BATCH]
        if profile == "quick":
            return try_mutants(folder, batch, profile)
        left = missed(batch, batch_of(index, "quick"))
        print("missed by --quick:", ", ".join(mutant.name for mutant in left))
        return try_mutants(folder, left, profile)

    return lambda mutant, profile: batch_of(EVERYWHERE.index(mutant) // BATCH, profile)[mutant.name]


@pytest.mark.parametrize("mutant", EVERYWHERE, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant, tried, record_property):
    """By each of the named tests, which compares and finds a difference."""
    run = tried(mutant, "quick")
    if missed((mutant,), {mutant.name: run}):
        record_property("missed by", "--quick")
        run = tried(mutant, "full")
    assert_caught(mutant, run)


@pytest.mark.parametrize("mutant", [mutant for mutant in EVERYWHERE if mutant.passes], ids=lambda mutant: mutant.name)
def test_mutant_is_wrong_in_one_thing_only(mutant, tried):
    """It passes the tests of other subjects: it is a port with a fault, not a ruin that any test would notice."""
    run = tried(mutant, "quick")
    assert {test: run.of(mutant, test) for test in mutant.passes} == {test: [] for test in mutant.passes}, run.printed


def test_every_mutant_is_tried():
    """Whatever is derived from the port in these modules is in the list, and no name is the start of another one."""
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) == len(set(names)) >= 183
    assert not [(a, b) for a in names for b in names if a is not b and b.startswith(a)]
    listed = {m.factory.func if isinstance(m.factory, partial) else m.factory for m in MUTANTS}
    bases = {base for port in listed if inspect.isclass(port) for base in port.__mro__[1:]}
    assert _subclasses(NumpyPort) - bases == listed - bases
    assert all(getattr(mutants, mutant.name) is mutant.factory for mutant in MUTANTS)


def _subclasses(port: type[NumpyPort]) -> set[type[NumpyPort]]:
    return {each for direct in port.__subclasses__() for each in {direct, *_subclasses(direct)}}


@pytest.mark.parametrize("factory", ["port:make_port", "mutants.state_file:OwnReader", "mutants.state_writer:Writer"])
def test_correct_port_passes_everything(factory, tmp_path):
    """As do the classes that mutants are derived from."""
    files = () if factory.startswith("port") else (str(TESTS["test_state_file"]), str(TESTS["test_golden_vectors"]))
    run = run_suite(tmp_path, [f"conformance.selftest.{factory}"], "quick", *files)
    assert run.code == 0, run.printed
    assert not any(run.outcomes.values())
    assert re.search(r"^\d\d+ passed", run.printed.splitlines()[-1]), run.printed
    assert not list(tmp_path.glob(".hypothesis*")), "the suite left a folder behind"

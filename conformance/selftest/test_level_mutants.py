"""Ports that are wrong at one level of one axis of the covering design: the full profile catches each. CONF-10."""

from functools import cache

import pytest

from conformance.selftest.mutant_runs import BATCH, assert_caught, try_mutants
from conformance.selftest.mutants import MUTANTS

pytestmark = pytest.mark.slow
LEVELS = tuple(mutant for mutant in MUTANTS if mutant.layouts)


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """Name of a mutant -> the run that it was in."""
    folder = tmp_path_factory.mktemp("mutants")
    batch_of = cache(lambda index: try_mutants(folder, LEVELS[index * BATCH : (index + 1) * BATCH], "full"))
    return lambda mutant: batch_of(LEVELS.index(mutant) // BATCH)[mutant.name]


@pytest.mark.parametrize("mutant", LEVELS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant, tried):
    """On the layouts that have the level, all of which are in the full profile."""
    assert_caught(mutant, tried(mutant))

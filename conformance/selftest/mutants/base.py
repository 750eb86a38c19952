"""What a mutant is."""

from collections.abc import Callable
from typing import NamedTuple

from conformance.selftest.port import NumpyPort

#: tests of one subject, for mutants that are wrong in another; where a name occurs in two files, with the file's stem
PROJECTION = "test_sinkhorn_projection::test_agrees_with_the_reference"
ADAPTER = "test_residual_mixing::test_agrees_with_the_reference"
STATE_FILE = "test_reads_what_a_state_file_holds"
ORTHOGONAL = "test_what_is_orthogonal_to_the_basis_passes_through"


class Mutant(NamedTuple):
    """A wrong port: its name, its factory, the tests that must all fail, and some that it must pass all the same.

    ``layouts``: what the names of the layouts have in common on which it is wrong, where it is so on a few alone.
    """

    name: str
    factory: Callable[[], NumpyPort]
    caught_by: tuple[str, ...]
    passes: tuple[str, ...]
    layouts: str = ""

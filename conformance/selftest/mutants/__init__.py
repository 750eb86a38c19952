"""Wrong ports, each with one fault that a real port could have. The suite must catch every one.

Each module holds the faults of one subject. Try ``--backend=conformance.selftest.mutants:transposed_mixing``.
"""

from collections.abc import Callable
from importlib.util import find_spec

from conformance.selftest.mutants.base import Mutant
from conformance.selftest.mutants.border import MUTANTS as BORDER
from conformance.selftest.mutants.gradients import MUTANTS as GRADIENTS
from conformance.selftest.mutants.lenient_reader import MUTANTS as LENIENT_READER
from conformance.selftest.mutants.levels import MUTANTS as LEVELS
from conformance.selftest.mutants.memory import MUTANTS as MEMORY
from conformance.selftest.mutants.mixing import MUTANTS as MIXING
from conformance.selftest.mutants.process import MUTANTS as PROCESS
from conformance.selftest.mutants.projection import MUTANTS as PROJECTION
from conformance.selftest.mutants.refusals import MUTANTS as REFUSALS
from conformance.selftest.mutants.scoped import MUTANTS as SCOPED
from conformance.selftest.mutants.sharing import MUTANTS as SHARING
from conformance.selftest.mutants.sizes import MUTANTS as SIZES
from conformance.selftest.mutants.state_file import MUTANTS as STATE_FILE
from conformance.selftest.mutants.state_writer import MUTANTS as STATE_WRITER
from conformance.selftest.port import NumpyPort

MUTANTS: tuple[Mutant, ...] = (
    *PROJECTION,
    *MIXING,
    *GRADIENTS,
    *BORDER,
    *SIZES,
    *MEMORY,
    *STATE_FILE,
    *LENIENT_READER,
    *STATE_WRITER,
    *SHARING,
    *PROCESS,
    *SCOPED,
    *LEVELS,
    *REFUSALS,
)
if find_spec("torch"):  # an extra, which the suite itself does without
    from conformance.selftest.mutants import autograd

    MUTANTS += autograd.MUTANTS
_FACTORIES = {mutant.name: mutant.factory for mutant in MUTANTS}


def __getattr__(name: str) -> Callable[[], NumpyPort]:
    """The factory of a mutant, by its name."""
    if name not in _FACTORIES:
        raise AttributeError(f"no mutant named {name}; there are {', '.join(_FACTORIES)}")
    return _FACTORIES[name]

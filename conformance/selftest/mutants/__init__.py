"""Wrong ports, each with one fault that a real port could have. The suite must catch every one.

Each module holds the faults of one subject. Try ``--backend=conformance.selftest.mutants:transposed_mixing``.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

from conformance.selftest.mutants.base import Mutant
from conformance.selftest.port import NumpyPort

SUBJECTS = (
    *("projection", "mixing", "gradients", "border", "sizes", "memory", "state_file", "lenient_reader", "state_writer"),
    "budgets",
    *("sharing", "process", "scoped", "levels", "refusals"),
    *(("autograd",) if find_spec("torch") else ()),  # an extra, which the suite itself does without
)
MUTANTS: tuple[Mutant, ...] = tuple(
    mutant for subject in SUBJECTS for mutant in import_module(f"{__name__}.{subject}").MUTANTS
)
_FACTORIES = {mutant.name: mutant.factory for mutant in MUTANTS}


def __getattr__(name: str) -> Callable[[], NumpyPort]:
    """The factory of a mutant, by its name."""
    if name not in _FACTORIES:
        raise AttributeError(f"no mutant named {name}; there are {', '.join(_FACTORIES)}")
    return _FACTORIES[name]

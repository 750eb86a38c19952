"""One installation at a time: the suite, the reference and the interface of ports belong together.

Clauses: CONF-4, CONF-8.
"""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest

from conformance.gaps import PACKAGE, is_ours
from reference.errors import ConfigError

PARTS = ("reference", "backends", "spec")


def one_installation() -> None:
    """Raises: ConfigError where ``reference``, ``backends`` or ``spec`` is found elsewhere than beside this suite, and
    where Python leaves the suite's own checks out.
    """
    if not __debug__:
        raise ConfigError(
            "Python",
            got="-O or PYTHONOPTIMIZE, which leaves every assert out",
            allowed="a run in which the suite compares",
            remedy="unset PYTHONOPTIMIZE",
        )
    for part in PARTS:
        found = find_spec(part)
        places = list((found and found.submodule_search_locations) or [(found and found.origin) or "nowhere"])
        if PACKAGE.parent / part not in [Path(place).resolve() for place in places]:
            raise ConfigError(
                f"package {part}",
                got=f"{places[0]}, while the suite lies in {PACKAGE}",
                allowed=f"{PACKAGE.parent / part}, of the same installation",
                remedy="start with `crma conformance` or `python -P -m conformance`, which look into this folder "
                "last; or rename the folder, or install one of the two alone",
            )


def refuse_another_installation(items: Iterable[pytest.Item]) -> None:
    """Raises: ConfigError for tests of another copy of this suite, which this one would run without a backend."""
    for item in items:
        folder = Path(item.path).resolve().parent
        if folder.name == PACKAGE.name and (folder / "clauses.py").is_file() and not is_ours(item):
            raise ConfigError(
                "conformance suite",
                got=f"tests of {folder}, while the plug-in is that of {PACKAGE}",
                allowed="one installation",
                remedy=f"`pip install -e {folder.parent}`, or run the tests that are installed: python -m conformance",
            )

"""What hypothesis draws: the profiles of this suite, and the same cases wherever it is installed.

Clauses: CONF-1, CONF-4.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest

from reference.errors import ConfigError

FOLDER = "HYPOTHESIS_STORAGE_DIRECTORY"
#: what ``--profile`` names, and the profile of hypothesis that it loads
PROFILES = {"full": "crma-ci", "quick": "crma-quick", "random": "crma-random"}


def slow(value: Any) -> Any:
    """A text or a tuple that equals ``value``, and that ``--quick`` leaves out of what a test is given. CONF-11."""
    return type(type(value).__name__, (type(value),), {"quick": False})(value)


def profile_of(config: pytest.Config) -> str:
    """``full``, ``quick`` or ``random``. Raises: ConfigError where ``--quick`` and ``--profile`` are two things."""
    named, quick = config.getoption("--profile"), config.getoption("--quick")
    if quick and named not in (None, "quick"):
        raise ConfigError(
            "--profile", got=f"{named} beside --quick", allowed="one of the two", remedy="--quick is --profile quick"
        )
    return "quick" if quick else named or "full"


def load_profile(config: pytest.Config) -> None:
    """Register the profiles, and load the one of ``--quick`` unless ``--hypothesis-profile`` names another.

    Without hypothesis nothing is done: pytest serves other tests here, such as bench/. Raises: ConfigError for a
    profile that does not exist. Clauses: CONF-1, CONF-4, ERR-2.
    """
    try:
        from hypothesis import HealthCheck, Phase, settings
        from hypothesis.errors import InvalidArgument
    except ModuleNotFoundError:
        return
    if FOLDER not in os.environ:  # even without a database it would write into the current folder
        os.environ[FOLDER] = folder = tempfile.mkdtemp(prefix="crma-conformance-")
        config.add_cleanup(lambda: _remove(folder))
    quick = [Phase.explicit, Phase.generate]
    profiles: dict[str, dict[str, object]] = {
        "crma-ci": {"derandomize": True, "max_examples": 150},
        "crma-random": {"derandomize": False, "max_examples": 5000, "print_blob": True},
        "crma-quick": {"derandomize": True, "max_examples": 25, "phases": quick},
    }
    common = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
    for name, chosen in profiles.items():
        settings.register_profile(name, **common, **chosen)  # type: ignore[arg-type]
    named = config.getoption("--hypothesis-profile", default=None)
    if not named:
        settings.load_profile(PROFILES[profile_of(config)])
        return
    try:
        settings.get_profile(named)
    except InvalidArgument:
        raise ConfigError(
            "--hypothesis-profile",
            got=repr(named),
            allowed=", ".join(sorted({*profiles, *getattr(settings, "_profiles", ())})),
            remedy="use --profile full, quick or random instead",
        ) from None


@contextmanager
def same_cases_everywhere() -> Iterator[None]:
    """Without the literals that hypothesis mixes into its draws, as long as it has them and lets them be taken out.

    It reads them from the source of every module that lies outside site-packages: those of this suite in a checkout
    but not in an installed wheel, and those of a port. Clause: CONF-1.
    """
    try:
        providers: Any = import_module("hypothesis.internal.conjecture.providers")
        none, cache = providers.Constants(), type(providers.CONSTANTS_CACHE)(1024)
        providers._get_local_constants  # noqa: B018
    except (ImportError, AttributeError, TypeError):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(providers, "_get_local_constants", lambda: none)
        patch.setattr(providers, "CONSTANTS_CACHE", cache)  # of both kinds of literals that a draw may take
        yield


def _remove(folder: str) -> None:
    os.environ.pop(FOLDER, None)
    shutil.rmtree(folder, ignore_errors=True)

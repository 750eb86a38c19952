"""The pytest plug-in: ``--backend``, ``--quick``, the ``backend`` fixture, the header and the hypothesis profiles.

It is loaded with ``-p conformance.plugin``; the options then exist from any folder. Backends are loaded only when a
selected test of this suite needs one. Clauses: BACK-2, ERR-3. Source: ours.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

import reference
from backends import Backend, load_backend
from conformance.tolerances import tolerance_for
from reference.errors import CRMAError

PACKAGE = Path(__file__).resolve().parent
_HYPOTHESIS_FOLDER = "HYPOTHESIS_STORAGE_DIRECTORY"
_LOADED = pytest.StashKey[dict[str, Backend]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("crma conformance")
    group.addoption(
        "--backend",
        action="append",
        metavar="NAME",
        help="backend to test: a known name, or module:factory of a port; may be repeated (default: reference)",
    )
    group.addoption(
        "--quick", action="store_true", help="fewer examples, and failing examples are not shrunk (profile crma-quick)"
    )


@pytest.hookimpl(tryfirst=True)  # hypothesis' own plug-in then finds the profile that --hypothesis-profile names
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "clause(*ids): the clauses of spec/ that the test checks")
    config.stash[_LOADED] = {}
    try:
        from hypothesis import HealthCheck, Phase, settings
    except ModuleNotFoundError:  # not installed: pytest serves other tests here, such as bench/
        return
    if _HYPOTHESIS_FOLDER not in os.environ:  # even without a database it would write into the current folder
        os.environ[_HYPOTHESIS_FOLDER] = folder = tempfile.mkdtemp(prefix="crma-conformance-")
        config.add_cleanup(lambda: _remove_hypothesis_folder(folder))
    _register_profiles(settings, HealthCheck, Phase)
    if not config.getoption("--hypothesis-profile", default=None):
        settings.load_profile("crma-quick" if config.getoption("--quick") else "crma-ci")


def _remove_hypothesis_folder(folder: str) -> None:
    os.environ.pop(_HYPOTHESIS_FOLDER, None)
    shutil.rmtree(folder, ignore_errors=True)


def _register_profiles(settings: Any, health_check: Any, phase: Any) -> None:
    common = {"deadline": None, "database": None, "suppress_health_check": [health_check.too_slow]}
    settings.register_profile("crma-ci", derandomize=True, max_examples=150, **common)
    settings.register_profile("crma-random", derandomize=False, max_examples=5000, print_blob=True, **common)
    quick_phases = [phase.explicit, phase.generate]
    settings.register_profile("crma-quick", derandomize=True, max_examples=40, phases=quick_phases, **common)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames and _is_ours(metafunc.definition):
        metafunc.parametrize("backend", chosen_backends(metafunc.config), indirect=True, scope="session")


@pytest.hookimpl(trylast=True)  # after -k, -m and node ids have made their selection
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Load the chosen backends once; a failure is one message and exit code 4."""
    if not any("backend" in getattr(item, "fixturenames", ()) and _is_ours(item) for item in items):
        return
    for name in chosen_backends(config):
        try:
            port = config.stash[_LOADED][name] = load_backend(name)
            tolerance_for("adapter y - x", port.parameter_dtype, "forward")
        except CRMAError as error:
            raise pytest.UsageError(f"--backend={name}: {error}") from None


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    return [
        f"backend {name}: {port.name}, {port.version}, on {port.device}, parameters in "
        f"{port.parameter_dtype}, against spec {reference.SPEC_VERSION}"
        for name, port in config.stash[_LOADED].items()
    ]


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend named by ``--backend``. Outside this suite's folder: the first of them."""
    name = getattr(request, "param", chosen_backends(request.config)[0])
    loaded = request.config.stash[_LOADED]
    if name not in loaded:
        loaded[name] = load_backend(name)
    return loaded[name]


def chosen_backends(config: pytest.Config) -> list[str]:
    """The names given, without repetitions."""
    return list(dict.fromkeys(config.getoption("--backend") or ["reference"]))


def _is_ours(item: Any) -> bool:
    return Path(item.path).resolve().is_relative_to(PACKAGE)

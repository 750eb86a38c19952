"""A plug-in for runs on mutants: the examples of the profile, no time spent on making a failing one smaller, and no
further layout for a test that has already failed on a mutant.
"""

from collections.abc import Generator

import pytest
from hypothesis import Phase, settings

_CAUGHT: set[tuple[str, str]] = set()


@pytest.hookimpl(trylast=True)  # after the suite's own plug-in has loaded the profile
def pytest_configure() -> None:
    name = settings.get_current_profile_name()
    found = [Phase.explicit, Phase.generate]
    settings.register_profile(name, parent=settings.get_profile(name), phases=found, report_multiple_bugs=False)
    settings.load_profile(name)


def pytest_runtest_setup(item: pytest.Function) -> None:
    if _key(item) in _CAUGHT:
        pytest.skip("caught")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        _CAUGHT.add(_key(item))
    return report


def _key(item: pytest.Function) -> tuple[str, str]:
    return str(item.callspec.params.get("backend")), item.nodeid.partition("[")[0]

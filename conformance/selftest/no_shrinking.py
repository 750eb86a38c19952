"""A plug-in for runs on mutants: the examples of the profile, and no time spent on making a failing one smaller."""

from __future__ import annotations

import pytest
from hypothesis import Phase, settings


@pytest.hookimpl(trylast=True)  # after the suite's own plug-in has loaded the profile
def pytest_configure() -> None:
    name = settings.get_current_profile_name()
    found = [Phase.explicit, Phase.generate]
    settings.register_profile(name, parent=settings.get_profile(name), phases=found, report_multiple_bugs=False)
    settings.load_profile(name)

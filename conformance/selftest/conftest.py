"""Fixtures of several files."""

import sys

import pytest

from backends import load_backend

pytest.register_assert_rewrite("conformance.selftest.programs", "conformance.selftest.reports")


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A backend from the lines that a program runs for each request; what is started is stopped again."""

    from conformance.selftest.programs import PROGRAM

    def start(body, description="", seconds="20"):
        monkeypatch.setenv("CRMA_EXECUTABLE_TIMEOUT", seconds)
        text = PROGRAM.replace("BODY", "\n    ".join(body.splitlines()))
        if description:
            text = text.replace("\nfor line", f"\n{description}\nfor line")
        path = tmp_path / "program.py"
        path.write_text(text)
        return load_backend(f"{sys.executable} {path}")

    return start


@pytest.fixture(scope="session")
def passing(tmp_path_factory):
    """The report of two backends and one test."""
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    from conformance.selftest.reports import AGREES, PORT, report_of

    return report_of(tmp_path_factory.mktemp("passing"), AGREES, "--backend=reference", f"--backend={PORT}")

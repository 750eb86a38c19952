"""The part of the plug-in that collects a report (``--conformance-report``) and has it written at the end of a run.

Clauses: CONF-1, CONF-2.
"""

import os
import re
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.files import printable
from backends.interface import OPTIONAL, x_dtypes
from conformance import compare
from conformance.clauses import clauses_of
from conformance.controller import LOADED
from conformance.gaps import GAPS, PACKAGE, identifier, is_ours
from conformance.report.files import write_reports
from conformance.report.tally import OWN, Entry, Ledger
from conformance.report.verdict import summarise
from reference.errors import CRMAError

_FULL_EXAMPLES = 150
_MESSAGE = 900


class ReportPlugin:
    """Registered with pytest where a report is asked for; ``conformance_report`` is the list of its paths."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.paths = [os.path.abspath(path) for path in config.getoption("conformance_report")]
        self.ledger = Ledger()
        self.deselected = 0
        self.not_collected: list[str] = []
        self.files: set[Path] = set()
        self.started = time.time()
        self.lines: list[str] = []

    def pytest_sessionstart(self) -> None:
        compare.observers.append(self.ledger.observe)

    def pytest_unconfigure(self) -> None:
        if self.ledger.observe in compare.observers:
            compare.observers.remove(self.ledger.observe)

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self.deselected += sum(is_ours(item) for item in items)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.not_collected.append(report.nodeid.rpartition("/")[2])

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        gaps = {gap.test: (gap.reason, gap.link) for gap in self.config.stash[GAPS]}
        for item in filter(is_ours, session.items):
            self.files.add(Path(item.path).resolve())
            name = identifier(item)
            backend = _backend_of(item)
            self.ledger.entries[item.nodeid] = Entry(
                id=name,
                name=_without_backend(name, backend),
                backend=backend,
                clauses=tuple(dict.fromkeys(clauses_of(item))),
                measured=not name.startswith("selftest/"),  # these compare wrong values on purpose
                code=_code_of(item),
                gap=gaps.get(name) if backend else None,
            )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self.ledger.current = self.ledger.entries.get(item.nodeid)
        try:
            return (yield)
        finally:
            self.ledger.current = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        entry = self.ledger.entries.get(report.nodeid)
        if entry is None:
            return
        if report.failed:
            entry.note("failed", _message(report))
        elif report.skipped and hasattr(report, "wasxfail"):
            entry.note("gap", report.wasxfail.removeprefix("reason: "))
        elif report.skipped:
            entry.note("not offered", _message(report))
        elif report.when == "call":
            entry.note("passed", "")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.config.getoption("collectonly") or not self.ledger.entries:
            self.lines = ["no conformance report: no test of the suite was run"]
            return
        summary = summarise(self.ledger, self._identities(), self._options(), self._incomplete(), self.started)
        self.lines = [f"{port['name']}: {port['verdict']}" for port in summary["backends"]]
        try:
            self.lines += [f"report: {path}" for path in write_reports(self.paths, summary)]
        except CRMAError as error:
            self.lines.append(f"ERROR: {error}")
            session.exitstatus = session.exitstatus or pytest.ExitCode.USAGE_ERROR

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("conformance report")
        for line in self.lines:
            terminalreporter.line(printable(line))

    def _identities(self) -> dict[str, dict[str, Any]]:
        return {
            name: {
                "implementation": port.name,
                "version": port.version,
                "device": port.device,
                "parameter_dtype": np.dtype(port.parameter_dtype).name,
                "x_dtypes": list(x_dtypes(port)),
                "optional_functions": [function for function in OPTIONAL if hasattr(port, function)],
            }
            for name, port in self.config.stash[LOADED].items()
        }

    def _options(self) -> dict[str, Any]:
        from hypothesis import settings

        return {
            "profile": settings.get_current_profile_name(),
            "examples_per_property": settings().max_examples,
            "same_examples_every_time": settings().derandomize,
            "seed": self.config.getoption("--hypothesis-seed", default=None),
            "clause": self.config.getoption("--clause") or [],
            "keyword": self.config.getoption("keyword"),
            "markers": self.config.getoption("markexpr"),
            "tests_named": sorted(a.rpartition("/")[2] for a in self.config.args if "::" in a),
        }

    def _incomplete(self) -> list[str]:
        """Why this run is no proof of conformance; nothing if it is one (CONF-1)."""
        reasons, options = [], self._options()
        if options["examples_per_property"] < _FULL_EXAMPLES:
            reasons.append(f"{options['examples_per_property']} examples per property, not {_FULL_EXAMPLES}")
        for what in ("clause", "keyword", "markers", "tests_named"):
            if options[what]:
                chosen = options[what] if isinstance(options[what], str) else ", ".join(options[what])
                reasons.append(f"only a selection of the tests, by {what.replace('_', ' ')}: {chosen}")
        left_out = [path.name for path in sorted(PACKAGE.glob("test_*.py")) if path not in self.files]
        if left_out:
            reasons.append(f"files without a test in this run: {', '.join(left_out)}")
        if self.deselected:
            reasons.append(f"{self.deselected} collected tests were left out")
        if self.not_collected:
            reasons.append(f"files that could not be read: {', '.join(self.not_collected)}")
        not_run = sum(entry.outcome == "not run" for entry in self.ledger.entries.values())
        if not_run:
            reasons.append(f"the run stopped before {not_run} of its tests")
        return reasons


def _backend_of(item: pytest.Item) -> str:
    callspec = getattr(item, "callspec", None)
    fixed = "backend" in getattr(item, "fixturenames", ())
    return str(callspec.params.get("backend", OWN)) if callspec and fixed else OWN


def _without_backend(name: str, backend: str) -> str:
    if not backend:
        return name
    bare = re.sub(rf"(?<=[\[-]){re.escape(backend)}(?=[\]-])", "", name, count=1)
    return bare.replace("[]", "").replace("[-", "[").replace("-]", "]").replace("--", "-")


def _code_of(item: pytest.Item) -> Any:
    """The test's own code: hypothesis keeps it under its wrapper."""
    function = getattr(item, "function", None)
    inner = getattr(getattr(function, "hypothesis", None), "inner_test", function)
    return getattr(inner, "__code__", None)


def _message(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    text = re.sub(r"0x[0-9a-f]{6,}", "0x…", str(crash.message if crash else report.longrepr))
    return text if len(text) <= _MESSAGE else f"{text[:_MESSAGE].rstrip()} …"

"""The report of a run, as data: verdicts, clauses, accuracy, worst cases. Clauses: CONF-1, CONF-2."""

import datetime
import platform
import time
from collections import Counter
from importlib import metadata
from typing import Any

import numpy as np

import reference
from conformance.clauses import PORT_GROUPS, Clause, read_clauses
from conformance.report.tally import OUTCOMES, OWN, Entry, Ledger, Tally
from conformance.tolerances import TOLERANCES

SCHEMA_VERSION = 1
Summary = dict[str, Any]


def summarise(
    ledger: Ledger, identities: dict[str, Summary], options: Summary, incomplete: list[str], started: float
) -> Summary:
    """All that a report says, as plain data; the JSON report is this and nothing else.

    Args:
        identities: of each backend, as the run's header has them (CONF-2). options: what was asked for.
        incomplete: why the run is no proof (CONF-1). started: seconds since the epoch.
    """
    clauses = [clause for clause in read_clauses() if not clause.withdrawn]
    own = _section(ledger, OWN, None, clauses)
    names = dict.fromkeys([*identities, *(entry.backend for entry in ledger.entries.values() if entry.backend)])
    backends = [_section(ledger, name, identities.get(name), clauses) for name in names]
    for section in backends:
        section["verdict_code"], section["verdict"] = _verdict(section, own, incomplete)
    columns = [section["clauses"] for section in (*backends, own)]
    return {
        "schema": "crma-conformance-report",
        "schema_version": SCHEMA_VERSION,
        "project_version": _project_version(),
        "spec_version": reference.SPEC_VERSION,
        "date": datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "options": options,
        "complete": not incomplete,
        "incomplete": incomplete,
        "clauses": [
            {
                "id": clause.id,
                "title": clause.title,
                "group": clause.group,
                "file": f"spec/{clause.file}",
                "binds": "port" if clause.group in PORT_GROUPS else "project",
            }
            for clause in clauses
        ],
        "port_clauses_without_a_test": [
            clause.id
            for clause in clauses
            if clause.group in PORT_GROUPS and all(column[clause.id]["outcome"] == "not run" for column in columns)
        ],
        "backends": backends,
        "own_tests": own,
    }


def _section(ledger: Ledger, name: str, identity: Summary | None, clauses: list[Clause]) -> Summary:
    """What was found for one backend, or for the suite's own tests."""
    entries = [entry for entry in ledger.entries.values() if entry.backend == name]
    counts = Counter(entry.outcome for entry in entries)
    shares = [entry.tally.worst.share for entry in entries if entry.tally.worst]
    return {
        "name": name,
        "identity": identity,
        "counts": {outcome: counts[outcome] for outcome in OUTCOMES},
        "comparisons": sum(entry.tally.comparisons for entry in entries),
        "worst_share": max(shares, default=None),
        "clauses": {clause.id: _clause(ledger, name, clause.id, entries) for clause in clauses},
        "tests": [_test(entry) for entry in entries],
        "accuracy": [
            _accuracy(operation, dtype, tally)
            for (backend, operation, dtype), tally in sorted(ledger.by_operation.items())
            if backend == name
        ],
        "by_magnitude": [
            {"operation": operation, "dtype": dtype, "points": [_point(m, t) for m, t in sorted(points.items())]}
            for (backend, operation, dtype), points in sorted(ledger.by_magnitude.items())
            if backend == name
        ],
    }


def _clause(ledger: Ledger, backend: str, clause: str, entries: list[Entry]) -> Summary:
    tests = [entry for entry in entries if clause in entry.concerns]
    outcomes = {entry.outcome for entry in tests}
    order = ("failed", "gap", "not run", "passed", "not offered")
    tally = ledger.by_clause.get((backend, clause), Tally())
    return {
        "outcome": next((outcome for outcome in order if outcome in outcomes), "not run"),
        "tests": [entry.id for entry in tests],
        "comparisons": tally.comparisons,
        "worst_share": tally.worst.share if tally.worst else None,
    }


def _test(entry: Entry) -> Summary:
    reason, link = entry.gap or (entry.message, "")
    return {
        "id": entry.id,
        "name": entry.name,
        "clauses": list(entry.concerns),
        "outcome": entry.outcome,
        "comparisons": entry.tally.comparisons,
        "message": entry.message if entry.outcome == "failed" else "",
        "reason": reason if entry.outcome in ("gap", "not offered") else "",
        "link": link if entry.outcome == "gap" else "",
        **_worst(entry.tally),
    }


def _accuracy(operation: str, dtype: str, tally: Tally) -> Summary:
    """The row of the table, the larger of its two parts in eps, and how much of that was taken."""
    row = next((r for r in TOLERANCES.values() if (r.operation, r.dtype) == (operation, dtype)), None)
    found = _worst(tally)
    allowed_eps = max(row.atol / row.eps, row.ulps) if row else None
    return {
        "operation": operation,
        "dtype": dtype,
        "comparisons": tally.comparisons,
        "allowed_ulps": row.ulps if row else None,
        "allowed_eps": allowed_eps,
        "reached_eps": None if allowed_eps is None or found["share"] is None else found["share"] * allowed_eps,
        "reason": row.reason if row else "stated by the test",
        **found,
    }


def _worst(tally: Tally) -> Summary:
    return {
        "share": tally.worst.share if tally.worst else None,
        "worst": tally.worst._asdict() if tally.worst else None,
    }


def _point(magnitude: float, tally: Tally) -> Summary:
    assert tally.worst is not None
    worst = tally.worst
    return {
        "magnitude": magnitude,
        "comparisons": tally.comparisons,
        "share": worst.share,
        "error": worst.error,
        "allowed": worst.allowed,
    }


def _verdict(section: Summary, own: Summary, incomplete: list[str]) -> tuple[str, str]:
    """A failure is one in any run; everything else needs a complete one (CONF-1)."""
    counts, version = section["counts"], reference.SPEC_VERSION
    if counts["failed"]:
        failed = _counted(sum(clause["outcome"] == "failed" for clause in section["clauses"].values()), "clause")
        return "fails", f"does not conform: {_counted(counts['failed'], 'test')} failed, of {failed}"
    if incomplete:
        return "none", "no verdict: partial run"
    if own["counts"]["failed"]:
        return "none", f"no verdict: {_counted(own['counts']['failed'], 'test')} of the suite itself failed"
    if counts["gap"]:
        return "gaps", f"conforms to CRMA specification {version} but for {_counted(counts['gap'], 'declared gap')}"
    return "conforms", f"conforms to CRMA specification {version}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _project_version() -> str:
    try:
        return metadata.version("crma")
    except metadata.PackageNotFoundError:
        return "not installed"

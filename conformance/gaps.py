"""Declared gaps: what a port is known not to pass, by exact test id, each with its reason and a link.

Clauses: CONF-3, ERR-2.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from backends.files import read_toml
from reference.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent
DECLARED = pytest.StashKey["Gap"]()
GAPS = pytest.StashKey[Iterable["Gap"]]()
FORM = '[[gap]] tables with test = "test_FILE.py::test_NAME[PARAMETERS]", reason = "..." and link = "..."'


class Gap(NamedTuple):
    """One test that is expected to fail. ``test``: its id as pytest prints it, from the name of the file on."""

    test: str
    reason: str
    link: str


def read_gaps(path: Path | str) -> list[Gap]:
    """The gaps of a TOML file. Raises: ConfigError, naming the entry that is wrong. Clause: CONF-3."""
    try:
        content = read_toml(path)
    except (OSError, ValueError) as error:
        raise _wrong(path, getattr(error, "strerror", None) or str(error)) from error
    entries = content.pop("gap", [])
    if content or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _wrong(path, f"other keys: {', '.join(content) or 'gap'}")
    gaps: list[Gap] = []
    for number, entry in enumerate(entries, start=1):
        if sorted(entry) != sorted(Gap._fields) or not all(isinstance(v, str) and v.strip() for v in entry.values()):
            raise _wrong(
                path, f"entry {number} with {', '.join(f'{k} = {v!r}' for k, v in entry.items()) or 'nothing'}"
            )
        gaps.append(Gap(**entry))
    twice = sorted({gap.test for gap in gaps if [other.test for other in gaps].count(gap.test) > 1})
    if twice:
        raise _wrong(path, f"{twice[0]} more than once")
    return gaps


def declare_gaps(gaps: Iterable[Gap], items: list[pytest.Item], path: Path | str, *, whole: bool) -> None:
    """Mark the tests of ``gaps`` as strict expected failures.

    Args:
        items: everything collected, before any selection. path: the file, for the message.
        whole: whether every test of the collected files is among ``items``; without it a missing id proves nothing.

    Raises: ConfigError for an id that no test has. Clause: CONF-3.
    """
    by_id = {identifier(item): item for item in items if "backend" in getattr(item, "fixturenames", ())}
    files = {name.partition("::")[0] for name in by_id}
    for gap in gaps:
        if gap.test in by_id:
            reason = f"{gap.reason} ({gap.link})"
            by_id[gap.test].stash[DECLARED] = gap
            by_id[gap.test].add_marker(pytest.mark.xfail(reason=reason, strict=True))
        elif not (PACKAGE / gap.test.partition("::")[0]).is_file() or (whole and gap.test.partition("::")[0] in files):
            near = difflib.get_close_matches(gap.test, by_id, n=1, cutoff=0.0)
            raise ConfigError(
                f"{path}, test",
                got=repr(gap.test),
                allowed="the exact id of a test that a backend of this run is given",
                remedy=f"the nearest is {near[0]!r}" if near else "copy the id from the output of the run",
            )


def refuse_skipped(item: pytest.Item, report: pytest.TestReport) -> None:
    """A gap whose test is skipped has not failed as declared: it fails the run, as one that passes. Clause: CONF-3."""
    if DECLARED in item.stash and report.skipped and not hasattr(report, "wasxfail"):
        why = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else "no reason given"
        report.outcome = "failed"
        report.longrepr = f"[a declared gap that is skipped] {item.stash[DECLARED].test}: {why}. Take it from the gaps."


def is_ours(item: pytest.Item) -> bool:
    """Whether a test is one of this suite."""
    return Path(item.path).resolve().is_relative_to(PACKAGE)


def identifier(item: pytest.Item) -> str:
    """``test_FILE.py::test_NAME[PARAMETERS]``, wherever the suite is installed and wherever pytest was started."""
    path = Path(item.path).resolve()
    name = item.nodeid.partition("::")[2]
    return f"{path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else path.name}::{name}"


def _wrong(path: Path | str, got: str) -> ConfigError:
    return ConfigError(f"gaps file {path}", got=got, allowed=FORM, remedy="see conformance/examples/README.md")

"""The report as one self-contained HTML page, for readers who do not program. Clauses: CONF-1."""

import base64
import math
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2

from backends.files import printable
from conformance.report.picture import draw

Summary = dict[str, Any]
SYMBOLS = {"passed": "✓", "failed": "✗", "gap": "◐", "not offered": "–", "not run": "·"}
VERDICT_SYMBOLS = {"conforms": "✓", "gaps": "◐", "fails": "✗", "none": "?"}
WORST_CASES = 8


def report_html(summary: Summary) -> str:
    """The page; every value is escaped, the picture is a data URI, and nothing is fetched or run."""
    picture = draw(summary["backends"])
    return (
        _environment()
        .get_template("conformance.html")
        .render(
            report=summary,
            backends=summary["backends"],
            own=summary["own_tests"],
            columns=[*summary["backends"], *([summary["own_tests"]] if summary["own_tests"]["tests"] else [])],
            groups=_groups(summary["clauses"]),
            tests=_by_name([*summary["backends"], summary["own_tests"]]),
            failures=_failures(_with_outcome(summary, "failed")),
            gaps=_with_outcome(summary, "gap"),
            not_offered=_not_offered(_with_outcome(summary, "not offered")),
            worst_cases=[(section, _worst_cases(section)) for section in summary["backends"]],
            picture="data:image/svg+xml;base64," + base64.b64encode(picture).decode() if picture else "",
            symbols=SYMBOLS,
            verdict_symbols=VERDICT_SYMBOLS,
        )
    )


def share_text(share: float | None) -> str:
    """A share of what is allowed, in percent; beyond it as a multiple."""
    if share is None:
        return "–"
    if not math.isfinite(share):
        return "∞"
    if share > 1:
        return f"{share:.3g} ×" if share < 1000 else f"{share:.1e} ×"
    if share == 0:
        return "0 %"
    return f"{100 * share:.0f} %" if share >= 0.01 else "< 1 %"


def times_text(share: float) -> str:
    """The same within a sentence: "40 % of" or "12 times" what is allowed."""
    return f"{share_text(share)} of" if share <= 1 else f"{share_text(share).removesuffix(' ×')} times"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def exact(value: float) -> str:
    """As many digits as tell one float32 from the next, and more where the difference is smaller."""
    return f"{value:.12g}"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=lambda value: printable(value, keep="\n\t") if isinstance(value, str) else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(share=share_text, times=times_text, number=number, exact=exact)
    return environment


def _groups(clauses: list[Summary]) -> list[Summary]:
    """The clauses by group, those that bind a port first."""
    found = [
        {"name": name, "binds": rows[0]["binds"], "subject": _subject(rows), "clauses": rows}
        for name, rows in ((name, list(rows)) for name, rows in groupby(clauses, key=lambda clause: clause["group"]))
    ]
    return sorted(found, key=lambda group: group["binds"] != "port")


def _subject(clauses: list[Summary]) -> str:
    """``spec/30-sinkhorn-projection.md`` -> "sinkhorn projection"."""
    return Path(clauses[0]["file"]).stem.partition("-")[2].replace("-", " ").capitalize()


def _by_name(sections: list[Summary]) -> dict[str, list[Summary]]:
    """Clause -> its tests, each once, with what it gave for every column that has it."""
    found: dict[str, dict[str, Summary]] = {}
    for section in sections:
        for test in section["tests"]:
            for clause in test["clauses"]:
                row = found.setdefault(clause, {}).setdefault(test["name"], {"name": test["name"], "results": {}})
                row["results"][section["name"]] = test
    return {clause: list(rows.values()) for clause, rows in found.items()}


def _with_outcome(summary: Summary, outcome: str) -> list[tuple[str, Summary]]:
    sections = [*summary["backends"], summary["own_tests"]]
    return [(section["name"], test) for section in sections for test in section["tests"] if test["outcome"] == outcome]


def _failures(failed: list[tuple[str, Summary]]) -> list[Summary]:
    """The variants of one test together; ``worst``: the one that is furthest off, or else the first."""
    found: dict[tuple[str, str], list[Summary]] = {}
    for backend, test in failed:
        found.setdefault((backend, test["id"].partition("[")[0]), []).append(test)
    return [
        {
            "backend": backend,
            "file": name.partition("::")[0],
            "name": name.partition("::")[2],
            "clauses": list(dict.fromkeys(clause for test in tests for clause in test["clauses"])),
            "worst": max(tests, key=lambda test: test["share"] or 0.0),
            "tests": tests,
        }
        for (backend, name), tests in found.items()
    ]


def _not_offered(skipped: list[tuple[str, Summary]]) -> dict[tuple[str, str], list[Summary]]:
    """(Backend, reason) -> its tests."""
    found: dict[tuple[str, str], list[Summary]] = {}
    for backend, test in skipped:
        found.setdefault((backend, test["reason"]), []).append(test)
    return found


def _worst_cases(section: Summary) -> list[Summary]:
    """The tests that came closest to their limit, one case each; a bit-exact result is no worst case."""
    found = [test for test in section["tests"] if test["worst"] and test["share"] > 0]
    return sorted(found, key=lambda test: -test["share"])[:WORST_CASES]

"""Every clause has a test, and every id that is named exists. Clauses: CONF-5. Source: ours."""

import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from conformance.clauses import (
    PORT_GROUPS,
    PROJECT_GROUPS,
    SPEC,
    Clause,
    cited,
    clause_titles,
    marked_tests,
    parse_clauses,
    read_clauses,
)

pytestmark = pytest.mark.clause("CONF-5")

ROOT = SPEC.parent
FOLDERS = ("spec", "reference", "backends", "conformance", "bench")
SUFFIXES = (".py", ".md", ".c", ".js", ".mjs")
GROUP, OTHER = "SINK", "CERT"  # for made-up clauses; written out, their ids would count as citations


# -- the checks --


def without_test(clauses: list[Clause], tested: set[str], groups: tuple[str, ...]) -> list[str]:
    """Clauses of these groups that are in force and that no marker names."""
    return [c.id for c in clauses if c.group in groups and not c.withdrawn and c.id not in tested]


def malformed(clauses: list[Clause]) -> list[str]:
    """Ids that are given twice or in no known group, and clauses in force that name no source."""
    counts = Counter(clause.id for clause in clauses)
    problems = [f"{name} is defined {count} times" for name, count in counts.items() if count > 1]
    problems += [f"{c.id} is of no known group" for c in clauses if c.group not in PORT_GROUPS + PROJECT_GROUPS]
    problems += [f"{c.id} has no Source" for c in clauses if not (c.source or c.withdrawn)]
    return problems


def unknown(clauses: list[Clause], texts: dict[str, str]) -> list[str]:
    """``file: id`` for each id that a text names and the specification does not have."""
    known = {clause.id for clause in clauses}
    return [f"{file}: {name}" for file, text in texts.items() for name in sorted(cited(text) - known)]


# -- this repository --


def texts_of_the_repository() -> dict[str, str]:
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    paths += ROOT.glob("*.md")
    visible = (p for p in paths if not any(part.startswith(".") for part in p.relative_to(ROOT).parts))
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted(visible)}


def markers(texts: dict[str, str]) -> dict[str, list[str]]:
    """Clause id -> the tests that carry it, as ``file::test``."""
    found = defaultdict(list)
    for file, text in texts.items():
        if Path(file).name.startswith("test_") and file.endswith(".py"):
            for test, ids in marked_tests(text).items():
                for name in ids:
                    found[name].append(f"{file}::{test}")
    return found


CLAUSES = read_clauses()
TEXTS = texts_of_the_repository()
MARKERS = markers(TEXTS)


def test_clauses_and_markers_are_found():
    assert len(CLAUSES) >= 60
    assert {clause.group for clause in CLAUSES} <= set(PORT_GROUPS + PROJECT_GROUPS)
    assert len(MARKERS) >= 50
    assert "conformance/test_sinkhorn_projection.py::test_agrees_with_the_reference" in MARKERS[f"{GROUP}-4"]


def test_every_clause_has_a_test():
    missing = without_test(CLAUSES, set(MARKERS), PORT_GROUPS + PROJECT_GROUPS)
    assert not missing, f"no test is marked with {', '.join(missing)}"


#: clauses of these groups that no call of a port can show, and what shows them
SHOWN_ELSEWHERE = {
    "STATE-3": "atomic writing: backends/tests/test_atomic.py",
    "BACK-2": "names of backends: selftest/test_plugin.py",
    "BACK-5": "the lines of an executable: selftest/test_executable.py",
}


def test_every_clause_that_binds_a_port_has_a_test_that_a_port_runs():
    suite = {
        name for name, tests in MARKERS.items() if any(re.match(r"conformance/test_\w+\.py::", test) for test in tests)
    }
    assert not suite & set(SHOWN_ELSEWHERE)
    missing = without_test(CLAUSES, suite | set(SHOWN_ELSEWHERE), PORT_GROUPS)
    assert not missing, f"no test in conformance/test_*.py is marked with {', '.join(missing)}"


def test_clauses_are_well_formed():
    problems = malformed(CLAUSES)
    assert not problems, "; ".join(problems)


def test_every_id_that_is_named_exists():
    strangers = unknown(CLAUSES, TEXTS)
    ids = {clause.id for clause in CLAUSES}
    strangers += [f"{tests[0]}: {name}" for name, tests in MARKERS.items() if name not in ids]
    assert not strangers, f"not in spec/: {'; '.join(strangers)}"


def test_the_contents_page_lists_every_clause():
    """The last number of each group, as in ``A-1..9``, keeps pace with the sections."""
    page = (SPEC / "README.md").read_text(encoding="utf-8")
    last = {c.group: max(int(o.id.partition("-")[2]) for o in CLAUSES if o.group == c.group) for c in CLAUSES}
    listed = {group: int(end) for group, end in re.findall(r"\b([A-Z]+)-1\.\.(\d+)", page)}
    assert listed == last


def test_ids_and_titles_serve_a_report():
    titles = clause_titles()
    assert list(titles) == [clause.id for clause in CLAUSES if not clause.withdrawn]
    assert titles[f"{GROUP}-7"] == "No entry of M is negative"
    assert all(title and "\n" not in title and "`" not in title and "**" not in title for title in titles.values())


# -- the checks themselves, on made-up texts --

FAKE = f"""# A section

**{GROUP}-1** The first requirement, of `x` and [another](page.md).
It goes on. *Source: paper §1.*

**{GROUP}-2** The second. *Source: the idea, paper §2; the
figure, ours.*

**{OTHER}-1** *withdrawn*: it said the same as the first.

No clause: **{GROUP}-7** in the middle.
"""


def test_parser_reads_id_text_source_and_title():
    first, second, withdrawn = parse_clauses(FAKE, "x.md")
    assert (first.id, first.source, first.file, first.withdrawn) == (f"{GROUP}-1", "paper §1", "x.md", False)
    assert first.title == "The first requirement, of x and another"
    assert second.source == "the idea, paper §2; the figure, ours"
    assert withdrawn.withdrawn
    assert withdrawn.group == OTHER


def test_a_clause_without_a_test_is_reported_and_a_withdrawn_one_is_not():
    clauses = parse_clauses(FAKE, "x.md")
    assert without_test(clauses, {f"{GROUP}-1"}, (GROUP, OTHER)) == [f"{GROUP}-2"]
    assert without_test(clauses, {f"{GROUP}-1", f"{GROUP}-2"}, (GROUP, OTHER)) == []
    assert without_test(clauses, set(), (OTHER,)) == []


def test_duplicates_missing_sources_and_unknown_groups_are_reported():
    assert malformed(parse_clauses(FAKE, "x.md")) == []
    text = f"{FAKE}\n**{GROUP}-2** Again. *Source: ours.*\n\n**{GROUP}-3** No origin.\n\n**NEW-1** A. *Source: ours.*\n"
    assert malformed(parse_clauses(text, "x.md")) == [
        f"{GROUP}-2 is defined 2 times",
        "NEW-1 is of no known group",
        f"{GROUP}-3 has no Source",
    ]


@pytest.mark.parametrize(
    ("text", "strangers"),
    [
        (f"see {GROUP}-1, {GROUP}-2 and {OTHER}-1", []),
        (f"see {GROUP}-3", [f"a.py: {GROUP}-3"]),
        (f"{GROUP}-1..{GROUP}-2 and {GROUP}-1..2", []),
        (f"{GROUP}-1..{GROUP}-5", [f"a.py: {GROUP}-5"]),
        (f"{GROUP}-1..6", [f"a.py: {GROUP}-6"]),
        ("UTF-8, SHA-256 and X-1", []),
    ],
)
def test_an_id_that_does_not_exist_is_reported(text, strangers):
    assert unknown(parse_clauses(FAKE, "x.md"), {"a.py": text}) == strangers


MARKED = """
import pytest
pytestmark = [pytest.mark.slow, pytest.mark.clause("M-1")]
@pytest.mark.clause("A-1", "A-2")
@given(x=1)
def test_one(): ...
class TestGroup:
    pytestmark = pytest.mark.clause("G-1")
    @pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.clause("P-1"))])
    def test_two(self, x): ...
@pytest.mark.clause("H-1")
def helper(): ...
"""


def test_markers_are_read_wherever_they_stand_and_only_from_tests():
    assert marked_tests(MARKED) == {"test_one": {"M-1", "A-1", "A-2"}, "TestGroup::test_two": {"M-1", "G-1", "P-1"}}
    assert marked_tests("def test_without(): ...") == {}

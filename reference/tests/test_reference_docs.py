"""The examples in the reference's docstrings and in the specification are run, and each says what is computed."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import reference
import spec

PARTS = ["Semantics", "Inputs", "Outputs", "Constraints", "Gradient", "Example"]
NOT_NORMATIVE = ("README.md", "10-notation.md", "90-provenance.md", "95-out-of-scope.md")
SPEC_FILES = sorted(Path(spec.__file__).parent.glob("*.md"))
WITH_EXAMPLES = [path for path in SPEC_FILES if "```python" in path.read_text(encoding="utf-8")]
NORMATIVE = [path for path in SPEC_FILES if path.name not in NOT_NORMATIVE]
MODULES = [
    module.name for module in pkgutil.iter_modules(reference.__path__, "reference.") if ".test_" not in module.name
]


def test_reference_modules_and_normative_sections_are_found():
    assert {"reference.sinkhorn_projection", "reference.adapter", "reference.errors"} <= set(MODULES)
    assert len(NORMATIVE) >= 12
    assert {path.name for path in SPEC_FILES} >= set(NOT_NORMATIVE)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.failed == 0, f"{outcome.failed} of {outcome.attempted} examples of {name} failed; see the output"


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.name)
def test_spec_examples(path):
    outcome = doctest.testfile(str(path), module_relative=False, encoding="utf-8")
    assert outcome.attempted > 0, f"{path.name} has a python block without a >>> example"
    assert outcome.failed == 0, f"{outcome.failed} of {outcome.attempted} examples of {path.name} failed"


@pytest.mark.parametrize("path", NORMATIVE, ids=lambda path: path.name)
def test_normative_section_has_all_parts(path):
    text = path.read_text(encoding="utf-8")
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert [h for h in headings if h in PARTS] == PARTS, f"{path.name} has the sections {headings}"
    assert path in WITH_EXAMPLES, f"{path.name} has no example that can be run"
    gradient = text.partition("\n## Gradient\n")[2].partition("\n## ")[0]
    assert gradient.strip(), f"{path.name} does not say what is differentiated, or why nothing is"


@pytest.mark.parametrize("path", SPEC_FILES, ids=lambda path: path.name)
def test_links_lead_to_sections_that_exist(path):
    links = re.findall(r"\]\(([^):#]+\.md)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if not (path.parent / link).is_file()]
    assert not missing, f"{path.name} links to {missing}"


def test_the_version_is_the_one_that_the_texts_print():
    title = (SPEC_FILES[0].parent / "README.md").read_text(encoding="utf-8").partition("\n")[0]
    assert title == f"# CRMA specification, version {reference.SPEC_VERSION}"

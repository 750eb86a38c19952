"""The accuracy table that the specification prints is the one that the suite uses."""

from pathlib import Path

import pytest

import spec
from conformance.tolerances import as_markdown


@pytest.mark.clause("ACC-3")
def test_the_table_in_the_specification_is_this_one():
    page = (Path(spec.__file__).parent / "70-accuracy.md").read_text(encoding="utf-8")
    _, begin, rest = page.partition("<!-- tolerances:begin -->")
    printed, end, _ = rest.partition("<!-- tolerances:end -->")
    assert begin
    assert end
    assert printed.strip() == as_markdown().strip()

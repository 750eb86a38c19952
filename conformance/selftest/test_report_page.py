"""The page of a conformance report: complete, escaped, and fetching nothing. Clause: CONF-1."""

import math
import re
from html.parser import HTMLParser

import pytest

from conformance.clauses import clause_titles
from conformance.selftest.reports import made_up, summary_of

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from conformance.report.page import report_html, share_text


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "srcset", "data", "action", "style")]


def test_the_page_has_every_clause_and_fetches_nothing(passing):
    page = passing[1]
    parser = Links()
    parser.feed(page)
    assert not parser.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    outside = [link for link in parser.links if not re.match(r"data:image/svg\+xml;base64,|width:[\d.]+%$", link)]
    assert outside == ["https://arxiv.org/abs/2606.00382"]
    assert "url(" not in page
    assert "@import" not in page
    for name in clause_titles():
        assert f'<tr id="{name}">' in page, name
    assert "spec/95-out-of-scope.md" in page


def test_the_page_escapes_what_it_is_given():
    page = report_html(summary_of(made_up("failed", "gap", "not offered")))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 3


def test_a_run_without_a_backend_has_a_page():
    page = report_html(summary_of(made_up()))
    assert "No implementation was tested" in page


def test_shares_in_words():
    shares = (None, 0.0, 1e-5, 0.123, 1.0, 1.5, 1e6, math.inf)
    assert [share_text(s) for s in shares] == ["–", "0 %", "< 1 %", "12 %", "100 %", "1.5 ×", "1.0e+06 ×", "∞"]

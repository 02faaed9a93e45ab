"""Items on the page: what counts is marked."""

from __future__ import annotations

from minimind.inspection.examples import examples
from minimind.pages.markup import joined
from tests.unit.inspection.made import Page, made_report, made_report_of


def test_what_counts_is_marked():
    shown = joined(*examples(made_report()))
    assert shown.count("<mark>text says</mark>") == 2 * 2
    assert shown.count('<mark class="rejected">text says</mark>') == 2
    assert shown.count("text asks</") == 0
    assert shown.count("<details open") == 1
    assert "text, line 1: 9 tokens chosen, 8 rejected" in Page(shown).texts


def test_a_row_that_stands_alone_is_shown_as_one_text():
    for items, name in (("conversations", "answer"), ("texts", "text")):
        shown = joined(*examples(made_report_of(items)))
        page = Page(shown)
        assert shown.count("<mark>text says</mark>") == 1
        assert "text, line 1: 9 tokens" in page.texts
        assert name in page.texts
        assert "h3" not in page.elements
        assert "rejected" not in shown

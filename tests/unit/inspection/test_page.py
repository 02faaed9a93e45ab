"""The page: well-formed, self-contained, and whatever the data say they are texts in it."""

from __future__ import annotations

import re

import pytest

from minimind.inspection.page import page
from tests.unit.inspection.made import HOSTILE, Page, made_report, made_report_of


def test_hostile_texts_stay_texts():
    plain, hostile = Page(page(made_report("zebra"))), Page(page(made_report(HOSTILE)))
    assert "script" not in hostile.elements
    assert hostile.elements == plain.elements
    assert hostile.attributes == plain.attributes
    assert [text.replace("zebra", HOSTILE) for text in plain.texts] == hostile.texts


def test_every_text_of_the_data_is_on_the_page():
    """Where a report has a text of a user: sources, reasons, places, pairs, refusals, messages, findings, command."""
    made = made_report(HOSTILE)
    shown = Page(page(made)).texts
    for text in (
        *(HOSTILE, f"bad {HOSTILE}", f"not used: {HOSTILE}", f"{HOSTILE}, line 3", f"I cannot {HOSTILE}"),
        *(f"{HOSTILE} asks", f"{HOSTILE} says", f"stops: {HOSTILE}", made.command),
    ):
        assert text in shown


def test_the_page_needs_no_other_file():
    text = page(made_report())
    assert not re.search(r"(?:src|href)=|url\(|@import|https?://", text)
    assert len(text) < 60_000


@pytest.mark.parametrize("title", ["Rows", "Lengths", "Length bias", "Equal pairs", "Answers", "The run"])
def test_sections(title):
    assert title in Page(page(made_report())).texts


@pytest.mark.parametrize(
    ("items", "titles"),
    [
        ("conversations", ["Conversations before training", "Equal conversations", "Answers"]),
        ("texts", ["Texts before training", "Equal texts", "Texts", "rows to train on"]),
    ],
)
def test_other_jobs_have_the_sections_that_are_about_their_rows(items, titles):
    shown = Page(page(made_report_of(items))).texts
    assert [title for title in titles if title not in shown] == []
    assert not {"Length bias", "Scores", "Equal pairs", "right by “longer wins”"}.intersection(shown)

"""The page: well-formed, self-contained, and whatever the data say they are texts in it."""

from __future__ import annotations

import re

import pytest

from minimind.inspection.page import page
from tests.unit.inspection.made import HOSTILE, Page, made_report


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

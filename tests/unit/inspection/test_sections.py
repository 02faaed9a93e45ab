"""Sections of the page: what they say, and what they leave out where there is nothing to say."""

from __future__ import annotations

import dataclasses
import re

import pytest

from minimind.inspection import sections
from minimind.pages.markup import joined
from tests.unit.inspection.made import Page, made_report, made_report_of

REPORT = made_report()


def texts(section, report=REPORT) -> list[str]:
    return Page(joined(*section(report))).texts


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (sections.lengths, ["5 (62.5 %)", "2 (25 %)", "1 (12.5 %)", "62.5 % whole", "75 %"]),
        (sections.rows, ["text (held out)", "MiniMind's: 10", "Refused rows of text", "lines 1, 2"]),
        (sections.equal_pairs, ["2 (33.3 %)", "0 (0 %)", "text, line 3"]),
        (sections.answers, ["66.7 %, 83.3 %", "2 (33.3 %)", "1 (16.7 %)", "3 (50 %)"]),
        (sections.cost, ["100 tokens", "300 packed, 400 in rows", "3 of 4 pairs (1 epoch, 2 ranks)"]),
    ],
)
def test_numbers(section, expected):
    shown = texts(section)
    assert [text for text in expected if text not in shown] == []


def test_the_bias_in_words():
    (text, *_) = Page(joined(*sections.bias(REPORT.bias))).texts
    assert "have -3.2 tokens compared" in text
    assert "longer in 2 (25 %) of the pairs, as long in 1 (12.5 %), shorter in 5 (62.5 %)" in text
    assert "is right for 31.2 %" in text


def test_leaks_are_left_out_without_held_out_pairs():
    alone = dataclasses.replace(REPORT, eval_sources=(), eval_pairs=0)
    assert not any("held" in text for text in texts(sections.equal_pairs, alone))
    assert any("held" in text for text in texts(sections.equal_pairs))


def test_nothing_found_is_said():
    assert texts(sections.findings, dataclasses.replace(REPORT, findings=())) == ["Nothing unusual was found."]


def test_no_answer_was_read():
    none = dataclasses.replace(REPORT.answers, pairs=0, scripts={})
    assert len(texts(sections.answers, dataclasses.replace(REPORT, answers=none))) == 1


def test_memory_and_time_as_far_as_they_are_known():
    cost = dataclasses.replace(REPORT.cost, memory=None, no_memory="the run would stop", seconds=3725.0)
    unknown = dataclasses.replace(REPORT, cost=cost)
    assert sections.memory_text(unknown) == "not planned: the run would stop"
    assert sections.time_text(unknown).startswith("1:02:05 at the given rate")
    assert "1.00 GiB with these pairs, 2.00 GiB if all" in sections.memory_text(REPORT)
    assert "--tokens_per_second" in sections.time_text(REPORT)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (sections.rows, ["conversations", "rows", "texts"]),
        (sections.lengths, ["conversation", "tokens that count", "lost", "lost"]),
        (sections.equal_pairs, ["6 conversations have 5 different prompts.", "6 texts have 5 different ones."]),
        (sections.answers, ["2 (33.3 %)", "66.7 %"]),
        (sections.cost, ["3 of 4 conversations (1 epoch, 2 ranks)", "3 of 4 rows (1 epoch, 2 ranks)"]),
    ],
)
def test_rows_that_stand_alone(section, expected):
    """What pairs alone have is left out, and no sentence calls the rows pairs."""
    reports = [made_report_of(items) for items in ("conversations", "texts")]
    found = [texts(section, report) for report in reports]
    shown = [text for of_report in found for text in of_report]
    assert [text for text in expected if text not in shown and not (text == "lost" and "split" in found[1])] == []
    words = " ".join(shown).lower()
    assert [word for word in ("pair", "chosen", "rejected", "prefix", "contradict") if word in words] == []


def test_texts_that_are_split_lose_nothing():
    shown = texts(sections.lengths, made_report_of("texts"))
    assert [text for text in ("split", "3 (37.5 %)", "12", "lost") if text in shown] == ["split", "3 (37.5 %)", "12"]


@pytest.mark.parametrize("items", ["pairs", "conversations", "texts"])
def test_each_column_about_rows_has_its_own_name(items):
    report = REPORT if items == "pairs" else made_report_of(items)
    heads = next(sections.rows(report))
    names = re.findall("<th[^>]*>([^<]*)</th>", heads)
    assert len(names) == len(set(names)) == 6

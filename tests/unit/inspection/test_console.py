"""The report on the console: one screen, no control characters of the data."""

from __future__ import annotations

import dataclasses
import unicodedata

import pytest

from minimind.inspection.console import console_text
from minimind.inspection.texts import ItemTexts, Run
from tests.unit.inspection.made import HOSTILE, made_report, made_report_of


def width(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)


def with_pair(prompt: str, answer: str):
    runs = (Run(text=answer, counts=True), Run(text="<end>", counts=False))
    parts = {"prompt": (Run(text=prompt, counts=False),), "chosen": runs, "rejected": runs}
    one = ItemTexts(place="a, line 1", parts=parts, tokens={"chosen": 1, "rejected": 1})
    return dataclasses.replace(made_report(), examples=(one,))


@pytest.mark.parametrize("text", ["Why? " * 400, "为什么？" * 400])
def test_one_screen(text):
    lines = console_text(with_pair(text, text), colours=False).splitlines()
    assert len(lines) <= 45
    pair = lines[next(index for index, line in enumerate(lines) if line.startswith("First pair")) :]
    assert max(map(width, pair[:10])) <= 110
    assert sum(line.endswith("…") for line in pair) == 3


@pytest.mark.parametrize("colours", [False, True])
def test_what_counts_is_marked(colours):
    text = console_text(with_pair("Why?\n", "So."), colours=colours)
    marks = ("\033[32m", "\033[0m") if colours else ("[[", "]]")
    assert f"chosen    {marks[0]}So.{marks[1]}<end>" in text
    assert "prompt    Why?⏎" in text
    assert ("\033" in text) == colours


def test_the_data_send_nothing_to_the_terminal():
    assert "\033" not in console_text(made_report(HOSTILE), colours=False)


def test_rows_without_a_pair_are_counted():
    made = made_report()
    source = dataclasses.replace(made.sources[0], unpaired=3)
    text = console_text(dataclasses.replace(made, sources=(source,)), colours=False)
    assert "text: 10 rows (MiniMind's), 2 refused, 3 without a pair, 6 of 8 pairs used" in text


def test_numbers():
    text = console_text(made_report(), colours=False)
    for expected in (
        "text: 10 rows (MiniMind's), 2 refused, 6 of 8 pairs used",
        "text (held out): 4 rows",
        "prompt        12.5      11      40       64  █▃ ▆",
        "--max_seq_len      128*      512",
        "whole            62.5 %    100 %",
        "tokens left        75 %    100 %",
        "chosen -3.2 tokens on average; longer in 25 %, as long in 12.5 %; “longer wins” is right for 31.2 %",
        "5 prompts, 2 duplicates, 2 contradictions; held out too: 2 prompts, 0 pairs",
        "of 6 chosen: Latin 66.7 %, Chinese 33.3 %; 0 empty, 2 of one word, 1 (16.7 %) like refusals",
        "50 tokens a micro-batch, at most 70, instead of 100 padded: prefixes save 10 %, no padding 40 %",
        "To look at   ! stops: text",
        "- note: text",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (
            "conversations",
            [
                "5 prompts, 2 duplicates; held out too: 2 prompts, 0 conversations",
                "of 6 answers: Latin 66.7 %, Chinese 33.3 %; 1 empty, 2 of one word, 3 (50 %) like refusals",
                "3 steps of 4 conversations",
                "lost             12.5 %      0 %",
            ],
        ),
        (
            "texts",
            [
                "5 texts, 2 duplicates; held out too: 0 texts",
                "of 6 texts: Latin 66.7 %, Chinese 33.3 %; 1 empty, 2 of one word\n",
                "3 steps of 4 rows",
                "rows                 12",
            ],
        ),
    ],
)
def test_rows_that_stand_alone(items, expected):
    text = console_text(made_report_of(items), colours=False)
    assert [line for line in expected if line not in text] == []
    assert "instead of 100 padded: no padding saves 50 %" in text
    assert "First row    text, line 1; what counts is in [[ ]]\n                         text asks[[text says]]" in text
    assert [word for word in ("Length bias", "pair", "contradiction", "prefix", "chosen") if word in text] == []

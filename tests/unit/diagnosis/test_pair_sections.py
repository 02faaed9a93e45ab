"""Sections about single pairs: numbers, places and texts; what a row says cannot become markup."""

from __future__ import annotations

import dataclasses
import math

import pytest

from minimind.diagnosis import pair_sections
from minimind.diagnosis.language import Language
from minimind.diagnosis.reported import open_reported
from tests.unit.diagnosis.made_runs import made, made_run

SAY = Language("en")
FLAG = '<span class="flag">--ledger</span>'


@pytest.fixture
def run(tmp_path):
    return open_reported(made_run(tmp_path / "run"))


def shown(content):
    return "".join(content)


def test_margins_are_drawn_against_lengths(run):
    found = shown(pair_sections.length(run.pairs, SAY))
    assert "12 held-out pairs, evaluated at step 3." in found
    assert found.count("<circle") == 12
    assert math.isnan(run.pairs.correlation)
    assert "correlates" not in found


def test_a_correlation_is_a_sentence():
    from minimind.diagnosis.analysis import analyse

    pairs = analyse(made([1, 1], [1, 2], [-1.0, 1.0], chosen_tokens=[1, 3]), {}, texts=False)
    found = shown(pair_sections.length(pairs, SAY))
    assert "correlates by +1.00" in found
    assert "2 training pairs, each when it was met last." in found


def test_groups_have_their_accuracy_and_number(run):
    found = shown(pair_sections.groups(run.pairs, SAY))
    for text in ("By source", "By language", "100 % of 6", "0 % of 6", "50 % of 12"):
        assert text in found


def test_lists_have_places_numbers_and_escaped_texts(run):
    found = shown(pair_sections.lists(run.pairs, SAY))
    assert "run.jsonl, line 12: margin -1.000, times met: 1" in found
    assert "<script" not in found
    assert "&lt;script&gt;ask(11)&lt;/script&gt;" in found
    assert "bad &lt;b&gt;11&lt;/b&gt;" in found
    assert "好12" in found


@pytest.mark.parametrize(
    ("unit", "code", "place"),
    [
        ("line", "zh", "run.jsonl，第 12 行：margin -1.000"),
        ("row", "zh", "run.jsonl，第 12 条：margin -1.000"),
        ("row", "en", "run.jsonl, row 12: margin -1.000"),
    ],
)
def test_a_place_is_said_in_the_language_of_the_page(run, unit, code, place):
    found = {key: [dataclasses.replace(one, unit=unit) for one in listed] for key, listed in run.pairs.lists.items()}
    assert place in shown(pair_sections.lists(dataclasses.replace(run.pairs, lists=found), Language(code)))


def test_what_cannot_be_shown_is_said(tmp_path, run):
    (tmp_path / "run.jsonl").unlink()
    pairs = open_reported(tmp_path / "run").pairs
    found = shown(pair_sections.lists(pairs, SAY))
    assert f"Texts cannot be shown: {tmp_path / 'run.jsonl'} is not there any more." in found
    assert "好12" not in found
    assert f"无法显示文本：{tmp_path / 'run.jsonl'} 已不存在。" in shown(pair_sections.lists(pairs, Language("zh")))


def test_a_run_without_pairs_says_why(tmp_path, run):
    without = open_reported(made_run(tmp_path / "other", with_ledger=False))
    assert "Train with --ledger 1" in shown(pair_sections.without_ledger(without, SAY)).replace(FLAG, "--ledger")
    early = open_reported(made_run(tmp_path / "early", with_ledger=False, ledger=True))
    assert "ended before it wrote a pair" in shown(pair_sections.without_ledger(early, SAY))
    assert "has no margins" in shown(pair_sections.without_ledger(run, SAY))

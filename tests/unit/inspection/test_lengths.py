"""Statistics of lengths on made tables, with the values by hand."""

from __future__ import annotations

import pytest

from minimind.inspection.items import ITEMS
from minimind.inspection.lengths import LimitEffect, describe_lengths, length_bias, try_limits
from minimind.inspection.pairs import gather, right
from minimind.pages.charts import Histogram
from tests.unit.inspection.made import made_table, made_texts

# Rows of 12 and 10, 25 and 30, 40 and 40 tokens; the last pair differs from token 38 on.
PAIRS = gather([made_table((10, 2, 0), (20, 5, 10), (30, 10, 10), least=[12, 21, 38])], right)


def test_what_each_limit_does():
    """At 12 the first pair is whole and needs all of it; at 37 the third loses its difference, at 38 it keeps one."""
    assert try_limits(PAIRS, [40, 12, 11, 37, 12, 30, 50, 60], 38, "cut") == (
        LimitEffect(limit=11, whole=0, cut=0, lost=3, kept=0),
        LimitEffect(limit=12, whole=1, cut=0, lost=2, kept=(12 + 10) / 157),
        LimitEffect(limit=30, whole=2, cut=0, lost=1, kept=(12 + 10 + 25 + 30) / 157),
        LimitEffect(limit=37, whole=2, cut=0, lost=1, kept=(12 + 10 + 25 + 30) / 157),
        LimitEffect(limit=38, whole=2, cut=1, lost=0, kept=153 / 157),
        LimitEffect(limit=40, whole=3, cut=0, lost=0, kept=1),
    )


def test_what_is_left_depends_on_what_is_done_with_long_rows():
    """At 38 the third pair is cut; at 37 it loses its difference. `skip` leaves it out both times, `keep` never."""
    for limit, policy, cut, lost, kept in (
        (38, "skip", 0, 1, 12 + 10 + 25 + 30),
        (38, "keep", 1, 0, 12 + 10 + 25 + 30 + 38 + 38),
        (37, "keep", 0, 1, 12 + 10 + 25 + 30 + 37 + 37),
        (37, "error", 0, 1, 12 + 10 + 25 + 30),
    ):
        expected = LimitEffect(limit=limit, whole=2, cut=cut, lost=lost, kept=kept / 157)
        assert try_limits(PAIRS, [], limit, policy) == (expected,)


def test_limits_above_what_is_needed_are_left_out_but_for_the_run_s_own():
    assert [effect.limit for effect in try_limits(PAIRS, [30, 40, 50, 60, 70], 60, "cut")] == [30, 40, 60]


def test_length_bias_by_hand():
    """Differences 2, -5, 0: mean -1, median 0; the rule is right once, and a tie counts half."""
    bias = length_bias(PAIRS)
    assert (bias.mean_difference, bias.median_difference) == (-1, 0)
    assert (bias.longer, bias.equal, bias.shorter) == (1, 1, 1)
    assert bias.rule == 0.5
    assert bias.differences == Histogram(start=-6, width=1, counts=(0, 1, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0))


def test_longer_answers_that_always_win():
    pairs = gather([made_table((1, 3, 2), (1, 9, 1))], right)
    assert length_bias(pairs).rule == 1
    swapped = gather([made_table((1, 2, 3), (1, 1, 9))], right)
    assert length_bias(swapped).rule == 0


def test_distributions_by_hand():
    found = describe_lengths(PAIRS, ITEMS["pairs"])
    prompt = found["prompt"]
    assert (prompt.mean, prompt.median, prompt.p90, prompt.longest) == (20, 20, 30, 30)
    assert found["chosen"].mean == pytest.approx(17 / 3)
    assert found["rejected"].median == 10
    assert prompt.histogram.width == 1
    assert [bar for bar, count in enumerate(prompt.histogram.counts) if count] == [10, 20, 30]
    # Both answers have the same bins.
    assert found["chosen"].histogram == Histogram(start=0, width=1, counts=(0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1))
    assert found["rejected"].histogram == Histogram(start=0, width=1, counts=(1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2))


def test_the_last_bar_has_everything_longer():
    """199 prompts of 100 tokens and one of a million: 99 % end at 100, in steps of 5."""
    lengths = describe_lengths(gather([made_table(*[(100, 1, 2)] * 199, (10**6, 1, 2))], right), ITEMS["pairs"])
    histogram = lengths["prompt"].histogram
    assert (histogram.width, len(histogram.counts), histogram.counts[20:]) == (5, 22, (199, 1))
    assert lengths["prompt"].longest == 10**6


def test_texts_that_are_split_make_rows_that_share_a_token():
    """Texts of 10, 11 and 30 tokens. Rows of 11: one, one, and 11 + 11 + 10 of which two tokens are there twice."""
    texts = gather([made_texts(10, 11, 30)], right)
    assert texts.longest.tolist() == [10, 11, 30]
    limits = try_limits(texts, [11, 30], 2, "split")
    assert [(one.limit, one.whole, one.cut, one.lost, one.rows) for one in limits] == [
        (2, 0, 3, 0, 9 + 10 + 29),
        (11, 2, 1, 0, 1 + 1 + 3),
        (30, 3, 0, 0, 3),
    ]
    cut = try_limits(texts, [11], 11, "cut")
    assert [(one.rows, one.kept) for one in cut] == [(None, (10 + 11 + 11) / 51)]
    assert list(describe_lengths(texts, ITEMS["texts"])) == ["whole"]

"""Selecting pairs: rows that are wrong, rows that are too long, and what an error lists."""

from __future__ import annotations

import numpy as np
import pytest

from minimind.data.rows import BadRow
from minimind.data.selection import LengthSummary, select_pairs, summarize_lengths
from minimind.data.tokens import END_CUT, LOST, PROMPT_CUT, ROWS, UNPAIRED
from minimind.errors import DataError
from tests.unit.data.tables import lines, table_of

# Lines 1 and 5 fit; 2 and 3 are cut at the end, and 3 loses its difference; 4 has no difference in the first place.
SAME = BadRow(line=4, reason="the answers have the same text", tokenized=True)
BROKEN = BadRow(line=6, reason="invalid JSON", tokenized=False)
MIXED = table_of(
    (90, 100, 0), (90, 101, END_CUT), (400, 300, END_CUT | LOST), (300, 300, END_CUT), (5, 5, 0), bad=(SAME, BROKEN)
)


@pytest.mark.parametrize(
    ("on_bad_row", "on_long_row", "expected"),
    [
        ("skip", "cut", [1, 2, 5]),
        ("skip", "cut_prompt", [1, 2, 5]),
        ("skip", "keep", [1, 2, 3, 5]),
        ("skip", "skip", [1, 5]),
        ("keep", "keep", [1, 2, 3, 4, 5]),
    ],
)
def test_pairs_that_each_policy_selects(on_bad_row, on_long_row, expected):
    assert lines(select_pairs(MIXED, on_bad_row=on_bad_row, on_long_row=on_long_row)) == expected


# Gaps of 2, 0.2 (a little less in float32), 0 and -1, and a pair without scores.
SCORED = table_of(*[(5, 5, 0)] * 5, scores=[8, 6, 0.3, 0.1, 3, 3, 1, 2, np.nan, np.nan])


@pytest.mark.parametrize(
    ("gap", "expected"), [(None, [1, 2, 3, 4, 5]), (-1, [1, 2, 3, 4]), (0, [1, 2, 3]), (0.2, [1, 2]), (2, [1])]
)
def test_pairs_are_selected_by_their_scores(gap, expected):
    assert lines(select_pairs(SCORED, on_bad_row="error", on_long_row="cut", filter_score_gap=gap)) == expected


def test_error_if_scores_leave_no_pair():
    with pytest.raises(DataError) as caught:
        select_pairs(SCORED, on_bad_row="error", on_long_row="cut", filter_score_gap=3)
    assert str(caught.value) == (
        "pairs.jsonl: none of the 5 rows can be trained on: --filter_score_gap 3 leaves out 5 of 5 pairs, of which 1 "
        "have no scores (columns score_chosen and score_rejected)"
    )
    with pytest.raises(DataError, match="of 2 no two answers make a pair: a tie, or scores closer than --sc"):
        select_pairs(table_of(counts={ROWS: 2, UNPAIRED: 2}), on_bad_row="error", on_long_row="cut")


def test_error_lists_bad_rows_in_a_line_each():
    with pytest.raises(DataError) as caught:
        select_pairs(MIXED, on_bad_row="error", on_long_row="cut")
    assert str(caught.value) == (
        "pairs.jsonl: 2 of 6 rows cannot be trained on:\n"
        "  line 4: the answers have the same text\n"
        "  line 6: invalid JSON\n"
        "Correct the rows, or omit them with --on_bad_row skip."
    )


def test_error_lists_long_rows_with_their_lengths():
    """A pair that is wrong is not called too long."""
    with pytest.raises(DataError) as caught:
        select_pairs(MIXED, on_bad_row="skip", on_long_row="error")
    assert str(caught.value) == (
        "pairs.jsonl: 2 of 4 pairs are longer than --max_seq_len 100:\n"
        "  line 2: 90 tokens chosen, 101 rejected\n"
        "  line 3: 400 tokens chosen, 300 rejected\n"
        "Increase it (--max_seq_len 400 would keep 99 % of the pairs whole), or choose --on_long_row cut, cut_prompt, "
        "skip or keep."
    )


def test_both_lists_are_one_error():
    with pytest.raises(DataError) as caught:
        select_pairs(MIXED, on_bad_row="error", on_long_row="error")
    assert "line 6: invalid JSON" in str(caught.value)
    assert "line 3: 400 tokens chosen" in str(caught.value)


def test_ten_of_many_long_rows_are_listed():
    table = table_of(*[(5, 200, END_CUT)] * 13, (5, 5, 0))
    with pytest.raises(DataError) as caught:
        select_pairs(table, on_bad_row="skip", on_long_row="error")
    message = str(caught.value)
    assert message.count("\n  line ") == 10
    assert "\n  ... and 3 more\n" in message


def test_a_reason_of_many_rows_is_one_line():
    """Without a remedy that would leave nothing, if there is no other row."""
    bad = tuple(BadRow(line=line, reason=f"invalid JSON at column {line}", tokenized=False) for line in range(101, 114))
    listed = "\n  lines 101, 102, 103, 104, 105, 106, 107, 108, ... (13 rows): invalid JSON at column 101"
    for others, remedy in ([], ""), ([(5, 5, 0)], "\nCorrect the rows, or omit them with --on_bad_row skip."):
        with pytest.raises(DataError) as caught:
            select_pairs(table_of(*others, bad=bad), on_bad_row="error", on_long_row="cut")
        total = 13 + len(others)
        assert str(caught.value) == f"pairs.jsonl: 13 of {total} rows cannot be trained on:{listed}{remedy}"


def test_error_policies_keep_a_table_without_such_rows():
    table = table_of((100, 1, 0), (2, 3, 0))
    assert lines(select_pairs(table, on_bad_row="error", on_long_row="error")) == [1, 2]


@pytest.mark.parametrize(
    ("table", "on_long_row", "reason"),
    [
        (
            table_of(bad=(BROKEN,)),
            "cut",
            "none of the 1 rows can be trained on: 1 are wrong: line 6: invalid JSON",
        ),
        (
            table_of((300, 200, END_CUT | LOST)),
            "cut",
            "1 keep no difference when they are cut to --max_seq_len 100; --max_seq_len 300 would keep 99 % of the",
        ),
        (table_of((300, 2, END_CUT)), "skip", "on: 1 are longer than --max_seq_len 100; --max_seq_len 300 would keep"),
    ],
)
def test_no_pair_left_is_an_error_with_the_reasons(table, on_long_row, reason):
    with pytest.raises(DataError) as caught:
        select_pairs(table, on_bad_row="skip", on_long_row=on_long_row)
    assert str(caught.value).startswith("pairs.jsonl: none of the ")
    assert reason in str(caught.value)


def test_summary_counts_pairs_that_are_not_wrong():
    assert summarize_lengths(MIXED) == LengthSummary(
        limit=100, pairs=4, too_long=2, prompt_cut=0, end_cut=2, lost=1, enough=400, longest=400
    )


def test_summary_of_cut_prompts():
    table = table_of((300, 200, PROMPT_CUT), (300, 200, PROMPT_CUT | END_CUT | LOST), (5, 5, 0))
    summary = summarize_lengths(table)
    assert (summary.too_long, summary.prompt_cut, summary.end_cut, summary.lost) == (2, 2, 1, 1)


@pytest.mark.parametrize(
    ("long", "enough", "advice"),
    [
        # 198 of 200 pairs are 99 %: the two longest may be cut, the third may not.
        ([1000, 900, 800], 800, "--max_seq_len 800 would keep 99 % of the pairs whole"),
        ([1000, 900], 50, "--max_seq_len 1000 would keep all pairs whole"),
    ],
)
def test_advice_keeps_ninety_nine_in_a_hundred_whole(long, enough, advice):
    table = table_of(*((length, 7, END_CUT) for length in long), *((7, 50, 0) for _ in range(200 - len(long))))
    summary = summarize_lengths(table)
    assert (summary.pairs, summary.enough, summary.longest) == (200, enough, 1000)
    assert summary.advice == advice


def test_summary_of_an_empty_table():
    summary = summarize_lengths(table_of(bad=(BROKEN,)))
    assert (summary.pairs, summary.too_long, summary.enough, summary.longest) == (0, 0, 0, 0)

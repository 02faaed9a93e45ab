"""Messages about rows: what a person reads about wrong rows, long rows and columns of no use."""

from __future__ import annotations

import numpy as np
import pytest

from minimind.config import DataConfig
from minimind.data.rows import BadRow
from minimind.data.table import PairTable
from minimind.data.tokens import DEVELOPER, END_CUT, LOST, PROMPT_CUT, UNPAIRED
from minimind.training.row_report import row_messages
from tests.unit.data.tables import table_of


def messages(table: PairTable, **flags: str) -> list[str]:
    return list(row_messages(table, DataConfig(**flags)))


def test_a_file_without_peculiarities_needs_no_message():
    assert messages(table_of((100, 3, 0), (5, 5, 0), counts={DEVELOPER: 0})) == []


def test_rows_of_each_shape():
    assert messages(table_of((5, 5, 0), shapes={"minimind": 1})) == []
    assert messages(table_of((5, 5, 0), shapes={"minimind": 1, "sharegpt": 300, "trl": 2})) == [
        "1 row: MiniMind's",
        "300 rows: ShareGPT",
        "2 rows: TRL's texts: prompt and answers become a user turn and an assistant turn of the chat template",
    ]


def test_rows_of_several_answers():
    table = table_of(*[(5, 5, 0)] * 5, counts={UNPAIRED: 2}, lines=[1, 1, 1, 4, 5])
    assert messages(table, pairing="all", score_gap=0.5) == [
        "2 rows without a pair: a tie, or scores closer than --score_gap 0.5",
        "3 rows make 5 pairs (--pairing all)",
    ]


def test_pairs_that_their_scores_leave_out_or_contradict():
    table = table_of(*[(5, 5, 0)] * 4, scores=[8, 6, 1, 2, 3, 3, np.nan, np.nan])
    assert messages(table) == [
        "in 1 pair the rejected answer has the higher score (--filter_score_gap 0 leaves these out)"
    ]
    assert messages(table, filter_score_gap=0.5) == [
        "pairs left out by --filter_score_gap 0.5: 3 of 4 (75.0 %), of these 1 without scores"
    ]


def broken(*lines: int) -> tuple[BadRow, ...]:
    return tuple(BadRow(line=line, reason="invalid JSON", tokenized=False) for line in lines)


def test_wrong_rows():
    assert messages(table_of((5, 5, 0), bad=broken(3, 4)), on_bad_row="skip") == [
        "2 of 3 rows are wrong and left out (--on_bad_row skip): lines 3, 4: invalid JSON"
    ]


def test_eight_of_many_wrong_rows_are_listed():
    (message,) = messages(table_of((5, 5, 0), bad=broken(*range(11, 20))), on_bad_row="skip")
    assert message.startswith("9 of 10 rows are wrong")
    assert "lines 11, 12, 13, 14, 15, 16, 17, 18, ... (9 rows): invalid JSON" in message


def test_wrong_rows_that_are_kept():
    same = BadRow(line=1, reason="the answers have the same text", tokenized=True)
    (message,) = messages(table_of((5, 5, 0), (5, 6, 0), bad=(same, *broken(3))), on_bad_row="keep", on_long_row="keep")
    assert message == (
        "2 of 3 rows are wrong and left out except 1 that MiniMind trains on (--on_bad_row keep): line 1: "
        "the answers have the same text; line 3: invalid JSON"
    )


# Of four pairs one fits, two are cut, and one keeps no difference.
LONG = table_of((90, 100, 0), (90, 101, END_CUT), (101, 3, END_CUT), (400, 300, END_CUT | LOST))
CAUSE = "since they have no difference that counts, or no token that counts in one half"
ADVICE = "--max_seq_len 400 would keep 99 % of the pairs whole"


@pytest.mark.parametrize(
    ("policy", "done"),
    [
        (
            "cut",
            f"cut at the end: 3; of these left out, {CAUSE}: 1 of 4 (25.0 %)",
        ),
        (
            "keep",
            f"cut at the end: 3; of these kept as MiniMind keeps them, {CAUSE}: 1 of 4 (25.0 %)",
        ),
        ("skip", "all of them left out"),
    ],
)
def test_long_rows(policy, done):
    assert messages(LONG, on_long_row=policy) == [
        f"pairs longer than --max_seq_len 100: 3 of 4 (75.0 %); {done}; {ADVICE} (--on_long_row {policy})"
    ]


def test_long_rows_with_cut_prompts():
    table = table_of((90, 100, 0), (90, 101, PROMPT_CUT), (400, 300, PROMPT_CUT | END_CUT))
    assert messages(table, on_long_row="cut_prompt") == [
        "pairs longer than --max_seq_len 100: 2 of 3 (66.7 %); without the oldest turns of their prompt: 2; cut at the "
        f"end: 1; {ADVICE} (--on_long_row cut_prompt)"
    ]


def test_a_small_share_is_not_nothing():
    """One pair in 2,000; 99 % are whole as it is."""
    (message,) = messages(table_of((200, 3, END_CUT), *[(5, 5, 0)] * 1999))
    assert message == (
        "pairs longer than --max_seq_len 100: 1 of 2000 (0.1 %); cut at the end: 1; --max_seq_len 200 would keep all "
        "pairs whole (--on_long_row cut)"
    )


def test_columns_of_no_use_are_listed_by_frequency():
    table = table_of((5, 5, 0), unused={"column 'note'": 1, "column 'score'": 300, "'weight' of messages": 20})
    assert messages(table) == [
        "not used: column 'score' (300 rows), 'weight' of messages (20 rows), column 'note' (1 row)"
    ]


def test_twelve_of_many_columns_are_named():
    (message,) = messages(table_of((5, 5, 0), unused={f"column 'c{index}'": 1 for index in range(15)}))
    assert message.count("column") == 12
    assert message.endswith(" and 3 more")


def test_developer_messages():
    assert messages(table_of((5, 5, 0), counts={DEVELOPER: 1})) == [
        "in 1 row a message of the role developer is read as the system message"
    ]

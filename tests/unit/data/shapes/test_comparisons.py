"""Two answers and a label: which one is chosen, ties, and damaged rows."""

from __future__ import annotations

import math

import pytest

from minimind.data.shapes import parse_rows
from minimind.data.sources import RowError
from tests.conftest import conversation, pair

QUESTION, FIRST, SECOND = "What do horses eat?", "Hay.", "Grass."
PKU = {"prompt": QUESTION, "response_0": FIRST, "response_1": SECOND}
SHP = {"history": QUESTION, "human_ref_A": FIRST, "human_ref_B": SECOND, "score_A": 9, "score_B": 4}
ARENA = {"conversation_a": conversation(QUESTION, FIRST), "conversation_b": conversation(QUESTION, SECOND)}
STEER = {"context": conversation(QUESTION, "")[:1], "response1": FIRST, "response2": SECOND}


@pytest.mark.parametrize(
    ("row", "label", "first", "second", "ties"),
    [
        (PKU, "better_response_id", (0, "0", 0.0), (1, "1"), ()),
        (SHP, "labels", (1, "1"), (0, "0"), ()),
        (ARENA, "winner", ("model_a",), ("model_b",), ("tie", "tie (bothbad)", "both_bad")),
        (STEER, "overall_preference", (-3, "-1"), (1, 2.0), (0,)),
    ],
)
def test_the_label_says_which_answer_is_better(row, label, first, second, ties):
    for values, texts in ((first, (FIRST, SECOND)), (second, (SECOND, FIRST))):
        for value in values:
            (read,) = parse_rows({**row, label: value, "id": 1})
            assert {"chosen": read.chosen, "rejected": read.rejected} == pair(QUESTION, *texts)
            assert (read.shape, read.unused) == ("comparison", ("id",))
    for value in ties:
        assert parse_rows({**row, label: value}) == []
    for value in ("x", True, [1], 7 if row is not STEER else "x"):
        with pytest.raises(RowError, match=f"'{label}' does not say which answer is better: "):
            parse_rows({**row, label: value})


def test_scores_follow_the_answers():
    assert parse_rows({**SHP, "labels": 0})[0].scores == (4, 9)
    (row,) = parse_rows({**SHP, "labels": 1, "score_B": None})
    assert row.scores[0] == 9
    assert math.isnan(row.scores[1])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**PKU, **STEER, "better_response_id": 0, "overall_preference": 1}, "the row has more than one of these: "),
        ({**PKU, "prompt": None, "better_response_id": 0}, "the row has none of these: 'prompt', 'response_0'"),
        ({**PKU, "response_1": 3, "better_response_id": 0}, "'rejected' is neither a text nor a list of messages: 3"),
        ({**PKU, "response_1": FIRST, "better_response_id": 0}, "'chosen' and 'rejected' are the same"),
    ],
)
def test_damaged_row(row, reason):
    with pytest.raises(RowError) as caught:
        parse_rows(row)
    assert str(caught.value).startswith(f"read as two answers and a label: {reason}")

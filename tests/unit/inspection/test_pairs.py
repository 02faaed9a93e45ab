"""Arrays over several sources: which pairs, their lengths, and where they are from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from minimind.data.rows import BadRow
from minimind.inspection.pairs import begins, gather, right, selected
from tests.unit.inspection.made import made_table, made_texts

ONE = made_table((4, 3, 2), (5, 1, 9), (2, 2, 2), bad=(BadRow(line=3, reason="same", tokenized=True),))
TWO = made_table((7, 7, 6), name="more.jsonl")


def test_pairs_of_all_sources_that_are_not_wrong():
    pairs = gather([ONE, TWO], right)
    assert len(pairs) == 3
    assert [pairs.prompts.tolist(), pairs.chosen.tolist(), pairs.rejected.tolist()] == [[4, 5, 7], [3, 1, 7], [2, 9, 6]]
    assert pairs.longest.tolist() == [7, 14, 14]
    assert pairs.least_limits.tolist() == [5, 6, 8]
    assert [pairs.identity(part).tolist() for part in range(3)] == [[0, 3, 0], [1, 4, 1], [2, 5, 2]]
    assert [pairs.place(index) for index in (1, 2)] == ["pairs.jsonl, line 2", "more.jsonl, line 1"]


def test_pairs_that_are_trained_on():
    table = dataclasses.replace(ONE, selected=np.array([1]))
    pairs = gather([table, TWO], selected)
    assert pairs.place(0) == "pairs.jsonl, line 2"
    assert pairs.place(1) == "more.jsonl, line 1"
    with pytest.raises(IndexError):
        pairs.place(2)


def test_no_table_has_no_pairs():
    pairs = gather([], right)
    assert [len(pairs), len(pairs.prompts), len(pairs.identity(0))] == [0, 0, 0]


def test_pieces_of_a_text_are_one_item():
    """A text of 25 tokens in rows of 10, 10 and 7, of which two share a token with the next; and one of 4."""
    table = made_texts(25, 4, limit=10)
    assert (len(table), begins(table).tolist()) == (4, [True, False, False, True])
    texts = gather([table], right)
    assert (len(texts), texts.longest.tolist(), texts.place(1)) == (2, [25, 4], "pairs.jsonl, line 2")
    (rows,) = texts.rows
    assert rows is texts.longest
    only_later = dataclasses.replace(table, selected=np.array([1, 3]))
    assert len(gather([only_later], selected)) == 1
    assert gather([table], right).identity(0).tolist() == [1, 2]


def test_tokens_that_count_in_rows_that_stand_alone():
    table = made_texts(5, 3)
    mask = np.array([0, 0, 1, 1, 0, 0, 0, 1, 0, 0], np.uint8)
    offsets = np.array([0, 5, 6, 9, 10])
    rows = gather([dataclasses.replace(table, mask=mask, offsets=offsets)], right)
    assert rows.counted.tolist() == [2, 1]
    assert len(ONE.lines) == len(begins(ONE)) == begins(ONE).sum()

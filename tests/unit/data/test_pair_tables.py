"""The tables of several sources as one."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest

from minimind.data.pair_tables import UNKNOWN_PART, PairTables
from minimind.data.rows import BadRow
from minimind.data.sources.source import ROW
from tests.unit.data.tables import ROWS, SHORT


@pytest.fixture
def tables(load, write_rows) -> PairTables:
    """Lines 1 and 4 of one file, of which the second is selected; and rows 1 and 3 of another."""
    one = load(write_rows(ROWS[0], "", "{broken", ROWS[1]))
    other = load(write_rows([ROWS[2], {}, SHORT], name="more.json"))
    one = dataclasses.replace(one, selected=np.array([1]))
    weighted = dataclasses.replace(other.source, weight=Fraction(1, 2))
    return PairTables(tables=(one, dataclasses.replace(other, source=weighted)))


def test_pairs_are_those_of_the_tables_one_after_the_other(tables):
    one, other = tables.tables
    assert len(tables) == 3
    for index, (table, place) in enumerate(((one, 0), (other, 0), (other, 1))):
        assert tables[index].chosen.tolist() == table[place].chosen.tolist()
        assert tables.packed_tokens[index] == table.packed_tokens[place]
        assert tables.costs[index] == table.costs[place]
    assert (tables.mix.sizes, tables.mix.weights) == ((1, 2), (1, Fraction(1, 2)))


def test_indices_count_all_pairs_and_lead_to_their_rows(tables):
    one, other = (table.source for table in tables.tables)
    assert [tables[index].index for index in range(3)] == [1, 2, 3]
    assert [tables.row_of(index) for index in range(4)] == [(one, 1), (one, 4), (other, 1), (other, 3)]
    assert tables.place(1) == f"{one.name}, line 4"
    assert tables.place(3) == f"{other.name}, row 3"
    assert tables.places([3, 0, 2, 1, 3], 2) == f"lines 1, 4 of {one.name}, rows 1, 3 of {other.name}"
    assert tables.places([1, 0], 1) == f"lines 1, ... of {one.name}"
    assert other.unit == ROW


def test_key_is_that_of_a_single_table_and_tells_orders(tables):
    one, other = tables.tables
    assert PairTables(tables=(one,)).key == one.key
    assert len({one.key, other.key, tables.key, PairTables(tables=(other, one)).key}) == 4


def test_many_pairs_lead_to_their_rows_at_once(tables):
    assert tables.indices.tolist() == [1, 2, 3]
    found = tables.rows_of(np.array([3, 0, 1, 2]))
    assert found.sources.tolist() == [1, 0, 0, 1]
    assert found.lines.tolist() == [3, 1, 4, 1]
    assert found.parts.tolist() == [0, 0, 0, 0]
    lengths = [table.prompt_lengths.tolist() for table in tables.tables]
    assert found.prompt_lengths.tolist() == [lengths[1][1], lengths[0][0], lengths[0][1], lengths[1][0]]


def test_pairs_of_one_row_are_counted(tables):
    one = dataclasses.replace(tables.tables[1], lines=np.array([7, 7, 9][: len(tables.tables[1].lines)]))
    assert PairTables(tables=(one,)).rows_of(np.array([1, 0])).parts.tolist() == [1, 0]


def test_the_place_of_a_pair_is_unknown_where_another_of_its_row_could_not_be_tokenised(tables):
    one = dataclasses.replace(tables.tables[1], lines=np.array([7, 7, 9][: len(tables.tables[1].lines)]))
    one = dataclasses.replace(one, bad=[BadRow(line=7, reason="private characters", tokenized=False)])
    assert PairTables(tables=(one,)).rows_of(np.array([1, 0])).parts.tolist() == [UNKNOWN_PART, UNKNOWN_PART]

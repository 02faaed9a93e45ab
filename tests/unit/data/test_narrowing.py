"""Equal pairs once, the first pairs, and prompts that held-out pairs have too."""

from __future__ import annotations

import pytest

from minimind.data.narrowing import first_pairs, shared_prompts, without_duplicates
from minimind.data.pair_tables import PairTables
from tests.conftest import conversation, pair
from tests.unit.data.tables import lines


@pytest.fixture
def tables_of(load, write_rows):
    def build(*sources) -> PairTables:
        parts = (load(write_rows(*rows, name=f"{number}.jsonl")) for number, rows in enumerate(sources))
        return PairTables(tables=tuple(parts))

    return build


def kept(tables: PairTables) -> list[list[int]]:
    return [lines(table) for table in tables.tables]


A, B, C = (pair(f"Number {i}?", "Yes.", "No!") for i in range(3))
SWAPPED = {"chosen": A["rejected"], "rejected": A["chosen"]}
# A score in a message is nothing that the template reads.
SCORED = {half: [messages[0], {**messages[1], "score": 1}] for half, messages in B.items()}
OTHER_ANSWER = pair("Number 0?", "Yes.", "Never!")


def test_the_first_of_equal_pairs_is_kept(tables_of):
    tables = tables_of([A, B, A, SWAPPED, OTHER_ANSWER], [C, SCORED, A], [A])
    narrow = without_duplicates(tables)
    assert kept(narrow) == [[1, 2, 4, 5], [1], []]
    assert (narrow.duplicates, len(narrow)) == (4, 5)
    assert narrow[4].index == 5
    assert narrow.mix.sizes == (4, 1, 0)
    assert narrow.mix.draws(0, 1).tolist() == [0, 1, 2, 3, 4]
    assert (kept(without_duplicates(narrow)), without_duplicates(narrow).duplicates) == (kept(narrow), 0)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(1, [1, 0, 0]), (2, [1, 1, 0]), (4, [2, 1, 1]), (7, [3, 2, 2]), (8, [3, 3, 2]), (9, [4, 3, 2]), (99, [4, 3, 2])],
)
def test_the_first_pairs_are_those_of_every_source_in_proportion(tables_of, number, expected):
    tables = tables_of([A] * 4, [B] * 3, [C] * 2)
    narrow = first_pairs(tables, number)
    assert kept(narrow) == [list(range(1, count + 1)) for count in expected]
    assert (len(narrow), narrow.beyond_limit) == (min(number, 9), max(0, 9 - number))


def test_pairs_with_held_out_prompts_are_counted(tables_of):
    """The prompt is what both halves share, whatever the answers are."""
    turns = {half: conversation("Number 0?", "Yes.", "Sure?", answer) for half, answer in zip(A, "ab", strict=True)}
    held_out = tables_of([OTHER_ANSWER, C])
    assert shared_prompts(tables_of([A, A], [SWAPPED, B, turns]), held_out) == 3

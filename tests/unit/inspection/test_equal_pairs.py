"""Duplicates, contradictions and leaks among made pairs, given as numbers of prompt, chosen and rejected answer."""

from __future__ import annotations

import numpy as np
import pytest

from minimind.inspection.equal_pairs import Found, find_equal
from minimind.inspection.items import ITEMS
from tests.unit.inspection.made import made_pairs

NONE, PAIRS = made_pairs(), ITEMS["pairs"]


@pytest.mark.parametrize(
    ("identities", "duplicates", "contradictions", "prompts"),
    [
        ([(1, 2, 3), (1, 2, 4), (2, 2, 3)], [], [], 2),
        ([(1, 2, 3), (4, 5, 6), (1, 2, 3), (1, 2, 3)], [3, 4], [], 2),
        ([(1, 2, 3), (4, 5, 6), (1, 3, 2)], [], [1, 3], 2),
        # The same answers to another prompt are no contradiction.
        ([(1, 2, 3), (9, 3, 2)], [], [], 2),
        ([(1, 2, 3), (1, 3, 2), (1, 2, 3)], [3], [1, 2, 3], 1),
    ],
)
def test_equal_pairs(identities, duplicates, contradictions, prompts):
    found = find_equal(made_pairs(*identities), NONE, PAIRS)
    assert found.prompts == prompts
    assert [place.split(",")[1] for place in found.duplicates.places] == [f" line {line}" for line in duplicates]
    assert found.contradictions.places == tuple(f"pairs.jsonl, line {line}" for line in contradictions)
    assert (found.duplicates.pairs, found.contradictions.pairs) == (len(duplicates), len(contradictions))
    assert found.leaked_prompts == found.leaked_pairs == Found(pairs=0, places=())


def test_a_duplicate_names_what_it_repeats():
    found = find_equal(made_pairs((1, 2, 3), (4, 5, 6), (4, 5, 6)), NONE, PAIRS)
    assert found.duplicates.places == ("pairs.jsonl, line 3, repeats pairs.jsonl, line 2",)


def test_leaks_into_the_evaluation_data():
    """A pair leaks either way round; one with a prompt of the evaluation data leaks its prompt only."""
    held_out = made_pairs((1, 2, 3), (5, 6, 7), (1, 8, 9), name="eval.jsonl")
    found = find_equal(made_pairs((1, 2, 3), (1, 4, 3), (5, 7, 6), (2, 2, 3)), held_out, PAIRS)
    assert found.leaked_prompts == Found(pairs=3, places=tuple(f"pairs.jsonl, line {line}" for line in (1, 2, 3)))
    assert found.leaked_pairs == Found(pairs=2, places=tuple(f"pairs.jsonl, line {line}" for line in (1, 3)))
    assert found.eval_prompts == 2


def test_many_random_pairs_are_all_different():
    random = np.random.default_rng(0).integers(0, 2**64, (20_000, 3), np.uint64)
    found = find_equal(made_pairs(*random.tolist()), NONE, PAIRS)
    assert (found.duplicates.pairs, found.contradictions.pairs) == (0, 0)


def test_rows_that_stand_alone_have_no_contradictions_and_texts_no_prompts():
    """The third number of a conversation is 0, that of a text the place of its piece: no other answer."""
    held_out = made_pairs((1, 9, 0), (5, 5, 0), name="eval.jsonl")
    rows = made_pairs((1, 2, 0), (1, 0, 2), (5, 5, 0), (5, 5, 0))
    found = find_equal(rows, held_out, ITEMS["conversations"])
    assert (found.pairs, found.prompts, found.duplicates.pairs, found.contradictions) == (4, 2, 1, None)
    assert (found.leaked_prompts.pairs, found.leaked_pairs.pairs) == (4, 2)
    found = find_equal(rows, held_out, ITEMS["texts"])
    assert (found.contradictions, found.leaked_prompts, found.leaked_pairs.pairs) == (None, None, 2)

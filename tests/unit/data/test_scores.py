"""Pairs whose scores a loss cannot take are refused, with the source, the lines and what to do."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from minimind.data.pair_tables import PairTables
from minimind.data.scores import check_scores
from minimind.errors import DataError
from tests.unit.data.tables import table_of


def tables(*scores):
    pairs = [(5, 5, 0)] * (len(scores) // 2)
    table = table_of(*pairs)
    # 1e39 is infinite in float32.
    with np.errstate(over="ignore"):
        return PairTables(tables=(dataclasses.replace(table, scores=np.array(scores, np.float32)),))


def problem(given, loss="odpo", *, above=True) -> str:
    with pytest.raises(DataError) as caught:
        check_scores(given, loss, above=above)
    assert caught.value.agreed
    return str(caught.value)


def test_pairs_with_scores_pass():
    check_scores(tables(2.0, 1.0, 0.5, 0.25), "odpo", above=True)
    check_scores(tables(2.0, 3.0, 0.5, 0.5), "rebel", above=False)


def test_pairs_without_scores_are_listed_with_the_remedies():
    assert problem(tables(2.0, 1.0, math.nan, math.nan, 1e39, 0.0, 1.0, math.nan), "rebel", above=False) == (
        "pairs.jsonl: 3 of 4 pairs have no finite scores, which --loss rebel needs: lines 2, 3, 4; give numbers in the "
        "columns score_chosen and score_rejected, leave these pairs out with --filter_score_gap, or take another --loss"
    )


def test_a_filter_is_no_remedy_where_no_pair_has_scores():
    assert "filter" not in problem(tables(math.nan, math.nan), "rebel", above=False)


def test_pairs_whose_chosen_answer_has_no_higher_score_are_listed():
    found = problem(tables(2.0, 1.0, 1.0, 1.0, 1.0, 3.0))
    assert found.startswith("pairs.jsonl: in 2 of 3 pairs the score of chosen is not above that of rejected")
    assert "lines 2, 3" in found
    assert "--filter_score_gap above 0" in found


def test_only_selected_pairs_count_and_all_problems_are_one_error():
    given = tables(2.0, 1.0, math.nan, math.nan, 1.0, 3.0)
    selected = dataclasses.replace(given.tables[0], selected=np.array([0]))
    check_scores(PairTables(tables=(selected,)), "odpo", above=True)
    assert len(problem(PairTables(tables=(selected, *given.tables))).splitlines()) == 2

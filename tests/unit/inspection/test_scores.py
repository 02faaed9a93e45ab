"""Gaps between scores: their distribution, and what each --filter_score_gap leaves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from minimind.data.selection import select_pairs
from minimind.data.tokens import WRONG
from minimind.inspection.scores import describe_scores
from minimind.pages.charts import Histogram
from tests.unit.inspection.made import made_table

NAN = float("nan")


def scored(*scores: tuple[float, float]):
    table = made_table(*((1, 1, 1) for _ in scores))
    return dataclasses.replace(table, scores=np.array(scores, np.float32).ravel())


def test_pairs_are_counted_by_their_scores():
    found = describe_scores([scored((5, 1), (3, 3), (NAN, NAN)), scored((1, 2), (8, 2))], None)
    assert (found.pairs, found.scored, found.worse, found.equal) == (5, 4, 1, 1)
    assert (found.mean, found.median) == (2.25, 2.0)
    assert found.histogram.start == -1
    assert sum(found.histogram.counts) == 4


def test_what_a_gap_leaves_is_what_the_run_leaves():
    """0.3 - 0.1 counts as 0.2, although it is a little less in float32."""
    table = scored((0.3, 0.1), (0.9, 0.1), (0.2, 0.2), (0.1, 0.4), (NAN, NAN))
    found = describe_scores([table], 0.2)
    assert {0.0, 0.2} <= {effect.gap for effect in found.effects}
    for effect in found.effects:
        run = select_pairs(table, on_bad_row="skip", on_long_row="keep", filter_score_gap=effect.gap)
        assert effect.left == len(run)


def test_wrong_pairs_are_left_out():
    table = scored((5, 1), (3, 1))
    found = describe_scores([dataclasses.replace(table, cuts=np.array([WRONG, 0], np.uint8))], None)
    assert (found.pairs, found.scored, found.mean) == (1, 1, 2.0)


def test_data_without_scores_have_no_report():
    assert describe_scores([scored((NAN, NAN), (NAN, 1))], 1.0) is None
    assert describe_scores([], None) is None


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_edges_are_round_at_every_scale(scale):
    gaps = np.linspace(-2, 7, 200) * scale
    found = describe_scores([scored(*((gap, 0.0) for gap in gaps))], None).histogram
    assert 15 <= len(found.counts) <= 32
    assert f"{found.width:.0e}"[0] in "125"
    assert found.start / found.width == pytest.approx(round(found.start / found.width))
    assert not found.whole


def test_equal_gaps_are_one_bar():
    found = describe_scores([scored((2, 1), (3, 2))], None)
    assert found.histogram == Histogram(start=1, width=1, counts=(2,), whole=False)

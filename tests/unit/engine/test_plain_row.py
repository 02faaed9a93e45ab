"""A half of a pair as one row alone."""

from __future__ import annotations

import numpy as np

from minimind.data.table import PreferencePair
from minimind.engine.plain_row import plain_row, plain_rows

PAIR = PreferencePair(
    chosen=np.array([3, 7, 9, 11, 20, 30], np.int32),
    rejected=np.array([5, 7, 9, 40, 50], np.int32),
    chosen_mask=np.array([0, 0, 0, 1, 0, 1], np.uint8),
    rejected_mask=np.array([1, 0, 0, 1, 1], np.uint8),
    prefix=0,
    index=4,
)


def test_rows_of_a_pair():
    """The last token is no input, and nothing predicts the first one, even if its mask is set."""
    chosen, rejected = plain_rows(PAIR)
    assert chosen.token_ids.tolist() == [3, 7, 9, 11, 20]
    assert (chosen.target_positions.tolist(), chosen.target_ids.tolist()) == ([2, 4], [11, 30])
    assert rejected.token_ids.tolist() == [5, 7, 9, 40]
    assert (rejected.target_positions.tolist(), rejected.target_ids.tolist()) == ([2, 3], [40, 50])
    assert chosen.indices == rejected.indices == (4,)


def test_a_row_that_is_cut_loses_the_targets_that_no_input_predicts():
    row = plain_row(PAIR.chosen, PAIR.chosen_mask, 4, inputs=3)
    assert row.token_ids.tolist() == [3, 7, 9]
    assert (row.target_positions.tolist(), row.target_ids.tolist()) == ([2], [11])

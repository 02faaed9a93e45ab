"""Where answers begin: of pairs, of rows that stand alone, of texts."""

from __future__ import annotations

import numpy as np
import pytest

from minimind.data.prompts import split_answer
from minimind.data.table import PreferencePair


def made(mask, rejected=None, prefix=1, label=None):
    """Tokens 1, 2, 3, ... with a mask."""
    chosen = np.arange(1, len(mask) + 1, dtype=np.int32)
    rejected = np.array([0] if rejected is None else rejected, np.int32)
    return PreferencePair(
        chosen=chosen,
        rejected=rejected,
        chosen_mask=np.array(mask, np.uint8),
        rejected_mask=np.ones(len(rejected), np.uint8),
        prefix=prefix,
        index=0,
        label=label,
    )


@pytest.mark.parametrize(
    ("pair", "prompt", "answer"),
    [
        # Answers that begin with the same word; a turn behind the first answer.
        (made([0, 0, 1, 1, 0, 1], rejected=[1, 2, 3, 9, 9], prefix=3), [1, 2], [3, 4]),
        # An earlier answer that both have.
        (made([0, 1, 0, 1, 1], rejected=[1, 2, 3, 9], prefix=3), [1, 2, 3], [4, 5]),
        # A conversation, and an answer with a label: the last turn that counts.
        (made([0, 1, 0, 1, 1, 0]), [1, 2, 3], [4, 5]),
        (made([0, 0, 1, 1], rejected=[1, 2, 7, 8], label=True), [1, 2], [3, 4]),
        # A text, of which everything counts.
        (made([1] * 6), [1, 2, 3], [4, 5, 6]),
        (made([1] * 100), list(range(1, 33)), list(range(33, 101))),
        # Nothing counts.
        (made([0, 0]), [], []),
    ],
)
def test_prompt_and_answer(pair, prompt, answer):
    found = split_answer(pair)
    assert [part.tolist() for part in found] == [prompt, answer]

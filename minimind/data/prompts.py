"""Where the answer of a tokenised pair, conversation or text begins: what a model gets, and what the data answer.

PreferencePair -> split_answer -> tokens of the prompt, tokens of the (chosen) answer
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from minimind.data.table import PreferencePair

# Tokens of a text that its continuation begins after, at most.
_TEXT_PROMPT = 32


def split_answer(pair: PreferencePair) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Tokens of the prompt, and of the answer to it; both may be empty.

    Of a pair it is the first chosen answer that differs; of a row that stands alone the last answer that counts; of a
    text the rest of it, after half of its tokens or `_TEXT_PROMPT` of them.
    """
    tokens, mask = pair.chosen, pair.chosen_mask
    if pair.label is None and len(pair.rejected) > 1:
        start = answer_start(pair)
        found = first_counted(mask[start:])
        return tokens[: start + found.start], tokens[start:][found]
    counted = np.flatnonzero(mask)
    if not len(counted):
        return tokens[:0], tokens[:0]
    start, end = int(counted[-1]), int(counted[-1]) + 1
    while start and mask[start - 1]:
        start -= 1
    if start == 0:
        start = min(len(tokens) // 2, _TEXT_PROMPT)
    return tokens[:start], tokens[start:end]


def answer_start(pair: PreferencePair) -> int:
    """Where the answers that differ begin. The table's own number is of rows before anything was cut."""
    start = pair.prefix
    while start and pair.chosen_mask[start - 1]:
        start -= 1
    return start


def first_counted(mask: NDArray[np.uint8]) -> slice:
    """The first run of tokens that count."""
    counted = np.flatnonzero(mask)
    if not len(counted):
        return slice(0, 0)
    gaps = np.flatnonzero(np.diff(counted) > 1)
    return slice(int(counted[0]), int(counted[gaps[0] if len(gaps) else -1]) + 1)

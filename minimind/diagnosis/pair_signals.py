"""Signals of single held-out pairs that their means hide: one evaluation's pairs -> numbers by name.

(n,) rewards and lengths of an evaluation -> HeldOut -> signals -> {name: value}; still_wrong -> pairs, over evaluations

Pure functions of arrays, in float64. Shape letter: n pairs, in the order of the held-out set.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
# Columns that the evaluation keeps for each pair: metrics of the job.
COLUMNS = ("rewards/chosen", "rewards/rejected", "lengths/chosen", "lengths/rejected")
DISPLACED, SATURATED = "displaced", "saturated"
CORRELATION, EQUAL_LENGTH_ACCURACY, EQUAL_LENGTHS = "length correlation", "equal-length accuracy", "equal lengths"
SIGNALS = (DISPLACED, SATURATED, CORRELATION, EQUAL_LENGTH_ACCURACY, EQUAL_LENGTHS)
# Below this share of its weight at a margin of 0 the gradient of a pair counts as gone.
_VANISHED = 0.01
# Answers are about equally long if their lengths differ by at most this share of the longer one.
_EQUAL = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The pairs of one evaluation.

    Attributes:
        chosen, rejected: (n,) rewards.
        chosen_tokens, rejected_tokens: (n,) tokens that count.
    """

    chosen: Values
    rejected: Values
    chosen_tokens: Values
    rejected_tokens: Values

    @classmethod
    def of_columns(cls, columns: Values) -> HeldOut:
        """From (4, n) values in the order of `COLUMNS`."""
        chosen, rejected, chosen_tokens, rejected_tokens = columns
        return cls(chosen=chosen, rejected=rejected, chosen_tokens=chosen_tokens, rejected_tokens=rejected_tokens)

    @property
    def margins(self) -> Values:
        """(n,) chosen minus rejected."""
        return self.chosen - self.rejected


def signals(pairs: HeldOut) -> dict[str, float]:
    """All numbers that exist for these pairs.

    displaced: share with a chosen reward below 0. If the reward is beta times the log-ratio to a reference, these
        chosen answers are less likely than under the reference.
    saturated: share whose gradient under the logistic loss is gone: its weight is sigmoid(-margin) (Rafailov et al.,
        2023, arXiv 2305.18290, section 4), 1/2 at a margin of 0.
    length correlation: Pearson's, of the margin with the difference of the lengths. It does not exist where one of the
        two does not vary.
    equal-length accuracy: accuracy over the pairs whose answers are about equally long; a tie counts half.
    equal lengths: number of these pairs.
    """
    margins = pairs.margins
    differences = pairs.chosen_tokens - pairs.rejected_tokens
    equal = np.abs(differences) <= _EQUAL * np.maximum(pairs.chosen_tokens, pairs.rejected_tokens)
    # sigmoid(-margin), bounded: exp above 709 would be infinite, with a warning.
    weights = 1 / (1 + np.exp(np.minimum(margins, 700)))
    found = {
        DISPLACED: float((pairs.chosen < 0).mean()),
        SATURATED: float((weights < _VANISHED / 2).mean()),
        CORRELATION: correlation(margins, differences),
        EQUAL_LENGTH_ACCURACY: _accuracy(margins[equal]),
        EQUAL_LENGTHS: float(equal.sum()),
    }
    return {name: value for name, value in found.items() if math.isfinite(value)}


def correlation(one: Values, other: Values) -> float:
    """Pearson's correlation of two (n,) arrays; NaN if one of them does not vary."""
    spreads = one.std() * other.std()
    return float(((one - one.mean()) * (other - other.mean())).mean() / spreads) if spreads > 0 else math.nan


def _accuracy(margins: Values) -> float:
    return float(((margins > 0) + (margins == 0) / 2).mean()) if len(margins) else math.nan


def still_wrong(margins: Values, before: Mapping[int, tuple[int, float]]) -> dict[int, tuple[int, float]]:
    """Pairs that are ranked wrongly, each more clearly than in the evaluation before.

    Pairs that a model ranks wrongly for good while it learns the others are often mislabelled (Swayamdipta et al.,
    2020, arXiv 2009.10795).

    Args:
        margins: (n,) of this evaluation.
        before: result of the evaluation before.

    Returns:
        Position of a pair with a negative margin -> number of evaluations in a row in which the margin fell, this one
        included, and the margin.
    """
    now: dict[int, tuple[int, float]] = {}
    for position in np.flatnonzero(margins < 0).tolist():
        margin = float(margins[position])
        times, last = before.get(position, (0, 0.0))
        now[position] = (times + 1 if margin < last else 1, margin)
    return now

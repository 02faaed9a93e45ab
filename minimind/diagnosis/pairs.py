"""What a ledger says of single pairs: how often each was met, how it was judged, how far it has moved.

Ledger of one set -> pair_histories -> PairHistories -> hardest, most_moved, most_suspicious -> places of pairs

The confidence of a pair is the mean probability that the policy has given to its label over all times that it was met
(dataset cartography, Swayamdipta et al., 2020, arXiv 2009.10795). Under the Bradley-Terry model the probability that
chosen is preferred is sigmoid(margin). Shape letter: n pairs, each once, in the order of their numbers.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from minimind.diagnosis.ledger import Ledger
from minimind.diagnosis.pair_signals import Values


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairHistories:
    """n pairs of one set.

    Attributes:
        last: the row of each pair from when it was met last.
        times: (n,) how often it was met.
        first_margins: (n,) the margins at the first time.
        confidence: (n,) mean probability of its label; NaN where the loss has no rewards.
        moved: (n,) by how many nats a token of both answers has moved, at the last time: away from the reference, or
            without one from the first time. NaN if neither is known.
    """

    last: Ledger
    times: NDArray[np.int64]
    first_margins: Values
    confidence: Values
    moved: Values

    def __len__(self) -> int:
        return len(self.last)

    @property
    def margins(self) -> Values:
        """(n,) at the last time."""
        return self.last.values["margin"].astype(np.float64)


def pair_histories(rows: Ledger) -> PairHistories:
    """The histories of all pairs of a set.

    Args:
        rows: of this set alone.
    """
    # By pair, then by step: first and last meetings of a pair are then the ends of its run of rows.
    rows = rows.where(np.lexsort((rows.step, rows.pair)))
    _, first, times = np.unique(rows.pair, return_index=True, return_counts=True)
    last = rows.where(first + times - 1)
    margins = rows.values["margin"].astype(np.float64)
    # exp of a large number would be infinite, which the division takes, with a warning.
    probabilities = 1 / (1 + np.exp(-np.clip(margins, -700, 700)))
    # reduceat of no places would raise.
    sums = np.add.reduceat(probabilities, first) if len(first) else np.zeros(0)
    return PairHistories(
        last=last,
        times=times,
        first_margins=margins[first],
        confidence=sums / times,
        moved=_moved(rows.where(first), last, times),
    )


def most_suspicious(pairs: PairHistories, most: int | None = None) -> NDArray[np.int64]:
    """Places of the pairs whose label the policy has found less likely than the opposite, the most suspicious first."""
    order = np.argsort(pairs.confidence, kind="stable")
    return order[pairs.confidence[order] < 0.5][:most]


def hardest(pairs: PairHistories, most: int) -> NDArray[np.int64]:
    """Places of the pairs with the largest losses at the last time."""
    return _largest(pairs.last.values["loss"], most)


def most_moved(pairs: PairHistories, most: int) -> NDArray[np.int64]:
    """Places of the pairs whose answers have moved furthest."""
    return _largest(pairs.moved, most)


def _moved(first: Ledger, last: Ledger, times: NDArray[np.int64]) -> Values:
    moved, tokens = np.zeros(len(last)), np.zeros(len(last))
    for half in ("chosen", "rejected"):
        now, reference = (last.values[name].astype(np.float64) for name in (f"{half}_logps", f"ref_{half}_logps"))
        # A pair that was met once has not moved from itself: without a reference that is unknown, not 0.
        before = np.where(times > 1, first.values[f"{half}_logps"], np.nan)
        tokens += last.values[f"{half}_tokens"]
        moved += np.abs(now - np.where(np.isnan(reference), before, reference))
    # Per token: a long answer would lead the list by its length alone.
    return moved / np.maximum(tokens, 1)


def _largest(values: NDArray[np.floating], most: int) -> NDArray[np.int64]:
    """Places of the largest values that are numbers, the largest first."""
    order = np.argsort(-values, kind="stable")  # NaN comes last
    return order[np.isfinite(values[order])][:most]

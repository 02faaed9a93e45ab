"""Scores of the answers, where the data have them: how far apart they are, and what a --filter_score_gap would leave.

PairTable of each source -> describe_scores -> ScoreReport, or None without scores
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from minimind.data.scores import score_gaps, scored_apart
from minimind.data.table import PairTable
from minimind.inspection.pairs import right
from minimind.pages.charts import Histogram

# Bars of the histogram, about, and gaps that are tried; shares of the values below and above the bars between the ends.
_BARS, _TRIED = 30, 6
_ENDS = (1, 99)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GapEffect:
    """How many pairs a --filter_score_gap leaves."""

    gap: float
    left: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """Gaps between scores, chosen minus rejected, of the pairs that are not wrong.

    Attributes:
        pairs, scored: their number, and that of those with scores.
        worse, equal: pairs whose rejected answer has the higher score, or the same.
        effects: of several gaps, ascending.
    """

    pairs: int
    scored: int
    mean: float
    median: float
    worse: int
    equal: int
    histogram: Histogram
    effects: tuple[GapEffect, ...]


def describe_scores(tables: Sequence[PairTable], own: float | None) -> ScoreReport | None:
    """The scores of all sources; None if no pair has any.

    Args:
        own: the run's --filter_score_gap, which is among those that are tried.
    """
    indices = [right(table) for table in tables]
    parts = [score_gaps(table)[index] for table, index in zip(tables, indices, strict=True)]
    gaps = np.concatenate(parts) if parts else np.empty(0)
    found = gaps[np.isfinite(gaps)]
    if not len(found):
        return None
    low, high = (float(value) for value in np.percentile(found, _ENDS, method="inverted_cdf"))
    step = _round_width(max(high, 0.0), _TRIED)
    tried = {0.0, *(step * number for number in range(1, _TRIED + 1) if step * number <= high)}
    tried |= set() if own is None else {own}
    return ScoreReport(
        pairs=len(gaps),
        scored=len(found),
        mean=float(found.mean()),
        median=float(np.median(found)),
        worse=int((found < 0).sum()),
        equal=int((found == 0).sum()),
        histogram=_histogram(found, low, high),
        effects=tuple(
            GapEffect(
                gap=gap,
                left=sum(int(scored_apart(table, gap)[at].sum()) for table, at in zip(tables, indices, strict=True)),
            )
            for gap in sorted(tried)
        ),
    )


def _round_width(room: float, most: int) -> float:
    """The smallest of 1, 2, 5, 10, ... and their fractions of which at most so many are in a room."""
    if room <= 0:
        return 1.0
    start = math.floor(math.log10(room / most))
    widths = (factor * 10.0**exponent for exponent in itertools.count(start) for factor in (1, 2, 5))
    return next(width for width in widths if width * most >= room * (1 - 1e-9))


def _histogram(gaps: NDArray[np.float64], low: float, high: float) -> Histogram:
    width = _round_width(high - low, _BARS)
    start = math.floor(low / width)
    bars = math.floor(high / width) - start + 1
    bins = np.clip(np.floor(gaps / width) - start, 0, bars - 1).astype(np.int64)
    counts = np.bincount(bins, minlength=bars).tolist()
    return Histogram(start=start * width, width=width, counts=tuple(counts), whole=False)

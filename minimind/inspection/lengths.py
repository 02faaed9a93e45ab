"""Lengths in tokens: their distribution, what each length limit does to the pairs, and whether longer answers win.

PairArrays -> describe_lengths -> Distribution of each length, e.g. of prompts, of chosen and of rejected answers
           -> try_limits       -> what each --max_seq_len keeps, cuts or splits, and loses
           -> length_bias      -> how much longer chosen is than rejected
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minimind.data.pairs import SPLIT
from minimind.data.selection import KEEP, SKIP
from minimind.inspection.items import ItemKind
from minimind.inspection.pairs import PairArrays
from minimind.pages.charts import Histogram

# Values of --max_seq_len that every report has, beside the run's own.
LIMITS = (256, 512, 1024, 2048, 4096, 8192)
# Bars of a histogram, about; its last one is for everything longer.
_BARS = 30
# Share of the values that the bars before the last one show.
_SHOWN_SHARE = 0.99


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distribution:
    """A distribution of lengths in tokens.

    Attributes:
        p90, p99: lengths that 90 % and 99 % do not exceed.
    """

    mean: float
    median: float
    p90: float
    p99: float
    longest: int
    histogram: Histogram


@dataclasses.dataclass(frozen=True, kw_only=True)
class LimitEffect:
    """What a --max_seq_len does to the pairs that are not wrong; `whole + cut + lost` are all of them.

    Attributes:
        whole: pairs of which both rows fit.
        cut: pairs that are cut and keep a difference that counts; texts that make several rows.
        lost: pairs that keep none when they are cut at the end; under --on_long_row skip all that are not whole.
        rows: that they make, if long texts are split; None: each makes one.
        kept: share of the tokens of all rows that is trained on.
    """

    limit: int
    whole: int
    cut: int
    lost: int
    rows: int | None = None
    kept: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthBias:
    """How much longer chosen answers are than rejected ones.

    Attributes:
        mean_difference, median_difference: tokens of chosen minus tokens of rejected.
        longer, equal, shorter: number of pairs whose chosen answer is longer, as long, shorter.
        rule: share of the pairs that "the longer answer wins" gets right; a tie counts half.
        differences: histogram of chosen minus rejected.
    """

    mean_difference: float
    median_difference: float
    longer: int
    equal: int
    shorter: int
    rule: float
    differences: Histogram


def describe_lengths(pairs: PairArrays, kind: ItemKind) -> Mapping[str, Distribution]:
    """Distributions over one pair or more, by the names of the lengths; those of one chart have the same bins."""
    found: dict[str, Distribution] = {}
    for chart in kind.charts:
        lengths = {one.name: one.of(pairs) for one in chart.lengths}
        width, bars = _bins(np.concatenate(list(lengths.values())))
        found |= {name: _describe(one, width, bars) for name, one in lengths.items()}
    return found


def try_limits(pairs: PairArrays, limits: Iterable[int], own: int, on_long_row: str) -> tuple[LimitEffect, ...]:
    """The effect of each limit, ascending, up to the first that keeps all pairs whole.

    Args:
        own: the limit of the run; its effect is always given.
        on_long_row: what the run does with longer ones.
    """
    effects: list[LimitEffect] = []
    for limit in sorted({*limits, own}):
        if effects and effects[-1].whole == len(pairs) and limit != own:
            continue
        effects.append(_effect(pairs, limit, on_long_row))
    return tuple(effects)


def _effect(pairs: PairArrays, limit: int, on_long_row: str) -> LimitEffect:
    longest = pairs.longest
    whole = int((longest <= limit).sum())
    if on_long_row == SPLIT:
        # Pieces share a token with the next; a row of one token is no piece.
        pieces = np.maximum(1, -(-(longest - 1) // (limit - 1)))
        return LimitEffect(limit=limit, whole=whole, cut=len(pairs) - whole, lost=0, rows=int(pieces.sum()), kept=1.0)
    is_lost = longest > limit if on_long_row == SKIP else pairs.least_limits > limit
    lost = int(is_lost.sum())
    # Under `keep` a run trains on those too that keep no difference.
    is_kept = ~is_lost if on_long_row != KEEP else np.ones_like(is_lost)
    kept = sum(int(np.minimum(rows, limit)[is_kept].sum(dtype=np.int64)) for rows in pairs.rows)
    return LimitEffect(
        limit=limit,
        whole=whole,
        cut=len(pairs) - whole - lost,
        lost=lost,
        kept=kept / sum(int(rows.sum(dtype=np.int64)) for rows in pairs.rows),
    )


def length_bias(pairs: PairArrays) -> LengthBias:
    """The bias over one pair or more."""
    difference = pairs.chosen - pairs.rejected
    longer, equal = int((difference > 0).sum()), int((difference == 0).sum())
    width, bars = _bins(np.abs(difference))
    return LengthBias(
        mean_difference=float(difference.mean()),
        median_difference=float(np.median(difference)),
        longer=longer,
        equal=equal,
        shorter=len(difference) - longer - equal,
        rule=(longer + equal / 2) / len(difference),
        # As many bins below zero as above. No difference belongs to the bin that begins at zero.
        differences=_histogram(difference, -width * bars, width, 2 * bars),
    )


def _describe(lengths: NDArray[np.signedinteger[Any]], width: int, bars: int) -> Distribution:
    median, p90, p99 = np.percentile(lengths, [50, 90, 99], method="inverted_cdf")
    return Distribution(
        mean=float(lengths.mean()),
        median=float(median),
        p90=float(p90),
        p99=float(p99),
        longest=int(lengths.max()),
        histogram=_histogram(lengths, 0, width, bars),
    )


def _bins(values: NDArray[np.signedinteger[Any]]) -> tuple[int, int]:
    """Width and number of the bins that show lengths from 0 on: a round width, so that the edges can be read."""
    shown = int(np.percentile(values, 100 * _SHOWN_SHARE, method="inverted_cdf"))
    width = next(
        factor * power
        for power in (10**exponent for exponent in itertools.count())
        for factor in (1, 2, 5)
        if factor * power * _BARS >= shown
    )
    return width, shown // width + 1 + int(bool((values >= (shown // width + 1) * width).any()))


def _histogram(values: NDArray[np.signedinteger[Any]], start: int, width: int, bars: int) -> Histogram:
    bins = np.clip((values - start) // width, 0, bars - 1)
    return Histogram(start=start, width=width, counts=tuple(np.bincount(bins, minlength=bars).tolist()))

"""Scores of both answers: how far they are apart, and whether all pairs have those that a loss needs.

    PairTable -> score_gaps, scored_apart -> --filter_score_gap (selection.py), messages
    PairTables, name of a loss -> check_scores -> an error that names the pairs and what to do

A pair without scores under a loss that needs them would give a loss that is not a number.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from minimind.data.pair_tables import PairTables
from minimind.data.table import PairTable
from minimind.errors import DataError

# Relative precision of scores, which are float32.
_ROUNDING = 1e-6
# Rows that an error lists.
_SHOWN = 10


def score_gaps(table: PairTable) -> NDArray[np.float64]:
    """Score of chosen minus score of rejected of each pair, (n,); NaN for pairs without scores."""
    chosen, rejected = table.scores.astype(np.float64).reshape(-1, 2).T
    return chosen - rejected


def scored_apart(table: PairTable, gap: float) -> NDArray[np.bool_]:
    """Which pairs have a chosen score that is at least `gap` above the rejected one, (n,)."""
    # The scores are rounded to float32, so that 0.3 - 0.1 is a little less than 0.2.
    return score_gaps(table) >= gap - _ROUNDING * np.abs(table.scores).reshape(-1, 2).max(1)


def check_scores(tables: PairTables, loss: str, *, above: bool) -> None:
    """Refuse pairs that a loss of scores cannot take, among those that are selected.

    Args:
        loss: value of --loss, for messages.
        above: the score of chosen must be above that of rejected.

    Raises:
        DataError: lists the sources, the pairs and the remedies.
    """
    if problems := [problem for table in tables.tables for problem in _problems(table, loss, above)]:
        raise DataError("\n".join(problems), agreed=True)


def _problems(table: PairTable, loss: str, above: bool) -> Iterator[str]:
    gaps, name = score_gaps(table)[table.selected], table.source.name
    # Numbers beyond float32 are infinite here.
    unscored = ~np.isfinite(gaps)
    if unscored.any():
        others = "" if unscored.all() else "leave these pairs out with --filter_score_gap, "
        yield (
            f"{name}: {unscored.sum()} of {len(gaps)} pairs have no finite scores, which --loss {loss} needs: "
            f"{_listed(table, unscored)}; give numbers in the columns score_chosen and score_rejected, {others}or take "
            "another --loss"
        )
    level = gaps <= 0
    if above and level.any():
        yield (
            f"{name}: in {level.sum()} of {len(gaps)} pairs the score of chosen is not above that of rejected, as "
            f"--loss {loss} needs it: {_listed(table, level)}; correct them, leave them out with a --filter_score_gap "
            "above 0, or take another --loss (rebel takes any gap)"
        )


def _listed(table: PairTable, pairs: NDArray[np.bool_]) -> str:
    return table.source.listed(sorted(set(table.lines[table.selected[pairs]].tolist())), _SHOWN)

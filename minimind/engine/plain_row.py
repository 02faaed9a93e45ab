"""One row alone, as the oracle computes it: the batch that a run's own layouts are compared with before it trains.

    PreferencePair -> plain_rows -> PlainRow of chosen, PlainRow of rejected -> PairScorer -> (K,) log-probs of each

A plain row goes through the engine like any other batch, because under ZeRO-3 only the engine has the whole model.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from minimind.data.packs import Batch
from minimind.data.table import PreferencePair


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainRow(Batch):
    """One row: `token_ids` (T,) with neither padding nor neighbours; targets in the order of the row."""


def plain_row(tokens: NDArray[np.int32], mask: NDArray[np.uint8], index: int, inputs: int | None = None) -> PlainRow:
    """The row of a half of a pair.

    Args:
        tokens, mask: of the half; its last token is a target only, as in the other layouts.
        index: `PreferencePair.index` of the pair.
        inputs: number of input tokens; by default all. Targets that no input predicts are left out.
    """
    inputs = len(tokens) - 1 if inputs is None else inputs
    targets = np.flatnonzero(mask[: inputs + 1])
    targets = targets[targets > 0]  # no token precedes the first one
    return PlainRow(
        token_ids=torch.from_numpy(tokens[:inputs].astype(np.int64)),
        target_positions=torch.from_numpy(targets - 1),
        target_ids=torch.from_numpy(tokens[targets].astype(np.int64)),
        row_tokens=inputs,
        indices=(index,),
    )


def plain_rows(pair: PreferencePair) -> tuple[PlainRow, PlainRow]:
    """Chosen and rejected of a pair."""
    return (
        plain_row(pair.chosen, pair.chosen_mask, pair.index),
        plain_row(pair.rejected, pair.rejected_mask, pair.index),
    )

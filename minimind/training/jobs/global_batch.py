"""The pairs of a global batch on all ranks, in one order that does not depend on how the batch is split.

this rank's (n, C) values and lines -> gather_pairs -> (M, C) values of all ranks, ordered by line; this rank's places
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from minimind.model.device_transfer import to_device
from minimind.ranks.collectives import all_reduce
from minimind.ranks.world import World


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatheredPairs:
    """Values of all pairs that count.

    Attributes:
        values: (M, C) float64, ordered by line.
        places: (n,) int64, row of each of this rank's pairs in `values`; any row for a pair that does not count.
    """

    values: Tensor
    places: Tensor


def gather_pairs(
    world: World, values: Tensor, indices: Sequence[int], weights: Sequence[float] | None = None
) -> GatheredPairs:
    """Collect values of pairs from all ranks. All ranks must call.

    Args:
        values: (n, C) float64, of this rank's pairs.
        indices: `PreferencePair.index` of each; it decides the order.
        weights: 0 for a pair that does not count, else 1; None: all count, and n is the same on all ranks.
    """
    count = len(indices)
    most = count if weights is None else int(all_reduce(torch.tensor(count, device=world.device), "max"))
    # Columns: 1 if the row is a pair that counts, its index, its values. All ranks but one have zeros in a row, so that
    # the sum over ranks is exact.
    own = to_device(np.column_stack((np.ones(count) if weights is None else weights, indices)), world.device)
    # A sum of a table with one filled row a rank gives every rank all rows with one collective, and 0 + x is exact.
    table = values.new_zeros(world.size, most, 2 + values.shape[1])
    table[world.rank, :count] = torch.cat((own.to(values.dtype), values), 1)
    table = all_reduce(table).flatten(0, 1)
    # Pairs that do not count come last, so that they can be cut off.
    # By the number of the pair: sums over the batch then add in one order on any number of ranks.
    order = table[:, 1].argsort(stable=True)
    order = order[table[order, 0].argsort(stable=True, descending=True)]
    # The inverse of the permutation: where a row went.
    places = order.argsort()[world.rank * most : world.rank * most + count]
    if weights is None:
        return GatheredPairs(values=table[order, 2:], places=places)
    counted = int(table[:, 0].sum())
    # A pair without weight points at some row, so that its loss is a number; the weight of 0 drops it later.
    return GatheredPairs(values=table[order[:counted], 2:], places=places.clamp_max(counted - 1))

"""Sums of an evaluation that also keep some metrics of each item, in the order of the held-out set.

BatchOutcome of each batch -> KeptItems.add -> kept: (C, n) of all ranks
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minimind.ranks.collectives import gather
from minimind.ranks.world import World
from minimind.training.jobs.job import BatchOutcome, Job
from minimind.training.metrics import MetricSums


class KeptItems(MetricSums):
    """Keeps C values of each item on the device until `kept`.

    Args:
        names: of the values; as of `BatchOutcome.of_items`.
    """

    def __init__(self, world: World, job: Job, names: Sequence[str]) -> None:
        super().__init__(world, job)
        self._kept_names, self._kept = tuple(names), list[Tensor]()

    def add(self, outcome: BatchOutcome, aux_loss: Tensor, row_tokens: int, weights: Tensor | None = None) -> None:
        super().add(outcome, aux_loss, row_tokens, weights)
        counted = torch.ones_like(outcome.losses.detach()) if weights is None else weights
        columns = (*(outcome.of_items(name) for name in self._kept_names), counted)
        self._kept.append(torch.stack([column.double() for column in columns]))

    def kept(self) -> NDArray[np.float64]:
        """(C, n) values of all items of all ranks with a weight; all ranks must call.

        Batches went to the ranks in turn (`eval_batches`), so taking them in turn restores the order, which then does
        not depend on the number of ranks.
        """
        # One transfer for all batches.
        sizes = [part.shape[1] for part in self._kept]
        own = np.split(torch.cat(self._kept, 1).cpu().numpy(), np.cumsum(sizes)[:-1], axis=1)
        turns = zip(*gather(self.world, own), strict=True)
        table = np.concatenate([part for turn in turns for part in turn], axis=1)
        # Items that only fill up the last batches have a weight of 0; every other item is there once.
        return table[:-1, table[-1] > 0]

"""Running means over global batches, for losses that need them (`PreferenceLoss.statistics`).

values of each micro-batch -> add -> (Step) sum over ranks -> running means, which the losses get in the next step

A global batch counts as a whole, so the means do not depend on how it is split over ranks and micro-batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from minimind.ranks.collectives import all_reduce
from minimind.ranks.world import World
from minimind.training.events import Listener, Step


class BatchStatistics(Listener):
    """Keeps running means of a global batch's means.

    Args:
        weights_of_past: name -> weight of the running mean when a batch's mean is added; 0: only the last batch counts,
            1: all batches count the same.
        world: the ranks.

    Attributes:
        means: name -> scalar float32 on the rank's device; empty before the first step.
    """

    name = "batch_statistics"

    def __init__(self, *, weights_of_past: Mapping[str, float], world: World) -> None:
        self._names, self._device = tuple(weights_of_past), world.device
        self._news = torch.tensor([1 - past for past in weights_of_past.values()], device=self._device)
        self._batches = 0
        self.means: dict[str, Tensor] = {}
        self._reset()

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add a micro-batch of N pairs, whose values are (N,) each."""
        # float64: a global batch of many micro-batches would lose digits of its mean.
        columns = torch.stack([values[name] for name in self._names]).double()
        self._sums[0] += columns.shape[1]
        self._sums[1:] += columns.sum(1)

    def on_step(self, event: Step) -> None:
        # The step is over on all ranks, so this is the first place where its global batch is known; the next step uses
        # it.
        totals = all_reduce(self._sums)
        # Scalars stay on the device: reading them would make the host wait for a GPU in every step.
        latest = (totals[1:] / totals[0]).float()
        self._batches += 1
        if self.means:
            # The first batches count the same until the weight of the newest has fallen to the one that was asked for.
            news = self._news.clamp_min(1 / self._batches)
            latest = torch.stack(tuple(self.means.values())).lerp(latest, news)
        self.means = dict(zip(self._names, latest, strict=True))
        self._reset()

    def state(self) -> dict[str, Any]:
        means = {name: mean.item() for name, mean in self.means.items()}
        # `item` waits for the device; a save waits for it anyway.
        return {"batches": self._batches, "means": means} if means else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._batches = state["batches"]
        self.means = {name: torch.tensor(state["means"][name], device=self._device) for name in self._names}

    def _reset(self) -> None:
        # The count, then one sum per name.
        self._sums = torch.zeros(1 + len(self._names), dtype=torch.float64, device=self._device)

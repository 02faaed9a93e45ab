"""Means of a loss's metrics over each global batch, for losses that need them (`PreferenceLoss.statistics`).

metrics of each micro-batch -> add -> (Step) sum over ranks -> means, which the loss gets in the next step
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from minimind.ranks.collectives import all_reduce
from minimind.ranks.world import World
from minimind.training.events import Listener, Step


class BatchStatistics(Listener):
    """Keeps the means of the previous global step.

    Args:
        names: metrics whose means are kept.
        world: the ranks.

    Attributes:
        means: name -> scalar float32 on the rank's device; empty before the first step.
    """

    name = "batch_statistics"

    def __init__(self, *, names: Sequence[str], world: World) -> None:
        self._names, self._device = tuple(names), world.device
        self.means: dict[str, Tensor] = {}
        self._reset()

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add a micro-batch of N pairs, whose metrics are (N,) each."""
        columns = torch.stack([metrics[name] for name in self._names]).double()
        self._sums[0] += columns.shape[1]
        self._sums[1:] += columns.sum(1)

    def on_step(self, event: Step) -> None:
        totals = all_reduce(self._sums)
        # Scalars stay on the device: reading them would make the host wait for a GPU in every step.
        means = (totals[1:] / totals[0]).float()
        self.means = dict(zip(self._names, means, strict=True))
        self._reset()

    def state(self) -> dict[str, float]:
        return {name: mean.item() for name, mean in self.means.items()}

    def restore(self, state: Mapping[str, float]) -> None:
        self.means = {name: torch.tensor(mean, device=self._device) for name, mean in state.items()}

    def _reset(self) -> None:
        # The count, then one sum per name.
        self._sums = torch.zeros(1 + len(self._names), dtype=torch.float64, device=self._device)

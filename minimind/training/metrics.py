"""Metrics: sums over pairs that stay on the device until a logged step, then means over all pairs of all ranks.

    PairOutcomes of each micro-batch -> MetricSums.add -> (logged step) reduce -> {name: mean}

Names are those that TRL's users know. A rate is per second of training steps, saves and evaluations left out.
"""

from __future__ import annotations

import resource

import torch
from torch import Tensor

from minimind.engine.process import World, all_reduce
from minimind.objective.dpo import PairOutcomes

# The order of the sums; the first counts pairs.
_MEANS = (
    "loss",
    "dpo_loss",
    "aux_loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


class MetricSums:
    """Sums over pairs since the last logged step."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        # float64: a run's worth of float32 sums would lose digits of the mean.
        self.sums = torch.zeros(2 + len(_MEANS), dtype=torch.float64, device=self.world.device)

    def add(self, outcomes: PairOutcomes, aux_loss: Tensor, row_tokens: int, weights: Tensor | None = None) -> None:
        """Add N pairs; `weights` (N,) of 0 leaves a pair out. `row_tokens` counts both rows of each pair."""
        losses = outcomes.losses.detach()
        columns = torch.stack(
            (
                torch.ones_like(losses),
                losses + aux_loss.detach(),
                losses,
                aux_loss.detach().expand_as(losses),
                outcomes.chosen_rewards,
                outcomes.rejected_rewards,
                outcomes.accuracies,
                outcomes.margins,
                outcomes.chosen_log_probs,
                outcomes.rejected_log_probs,
            )
        ).double()
        if weights is not None:
            columns = columns * weights
        self.sums[1:] += columns.sum(1)
        self.sums[0] += row_tokens

    def reduce(self, seconds: float) -> dict[str, float]:
        """Means over all pairs of all ranks, and rates over the seconds given; all ranks must call."""
        totals = all_reduce(self.sums.clone()).tolist()
        tokens, pairs = totals[:2]
        metrics = {name: total / pairs for name, total in zip(_MEANS, totals[2:], strict=True)}
        metrics["tokens_per_second"] = tokens / seconds
        metrics["pairs_per_second"] = pairs / seconds
        metrics["peak_memory_gib"] = peak_memory_gib(self.world)
        return metrics


def peak_memory_gib(world: World) -> float:
    """Largest memory that any rank has held: the GPU's allocations, or on a CPU the process's resident memory."""
    if world.on_cpu:
        mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    else:
        mine = torch.cuda.max_memory_allocated(world.device) / 2**30
    return float(all_reduce(torch.tensor(mine, device=world.device), "max"))

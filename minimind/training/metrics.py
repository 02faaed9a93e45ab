"""Metrics: sums over pairs that stay on the device until a logged step, then means over all pairs of all ranks.

    PairOutcomes of each micro-batch -> MetricSums.add -> (logged step) reduce -> {name: mean}
    a save between logged steps: StepMetrics.unlogged -> manifest -> StepMetrics of the run that goes on

Names are those that TRL's users know. A rate is per second of training steps, saves and evaluations left out.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from minimind.objective.dpo import PairOutcomes
from minimind.ranks.process import World, all_reduce, gather

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


class StepMetrics:
    """Training steps since the last logged one: sums over pairs, gradient norms, and the time that the steps took.

    Args:
        world: the ranks.
        unlogged: what `unlogged` said when the checkpoint was written that the run goes on from; else empty.
    """

    def __init__(self, world: World, unlogged: Mapping[str, Any]) -> None:
        self.sums = MetricSums(world)
        self.reset()
        if not unlogged:
            return
        parts = torch.tensor(unlogged["sums"], dtype=torch.float64, device=world.device)
        if len(parts) == world.size:
            self.sums.sums += parts[world.rank]
        elif world.is_main:  # other ranks than then: what counts is the sum over all
            self.sums.sums += parts.sum(0)
        self._norms += torch.tensor(unlogged["norms"], dtype=torch.float64, device=world.device)
        self._seconds = unlogged["seconds"]

    def reset(self) -> None:
        """Start anew, the clock running."""
        self.sums.reset()
        # Sum and count; a step that float16's loss scaling skipped has no norm.
        self._norms = torch.zeros(2, dtype=torch.float64, device=self.sums.world.device)
        self._seconds, self._since = 0.0, time.monotonic()

    def add_norm(self, norm: Tensor) -> None:
        """Add a step's gradient norm, a scalar that stays on the device."""
        self._norms += torch.stack((norm.nan_to_num(0.0, 0.0, 0.0), norm.isfinite().to(norm.dtype)))

    def pause(self) -> None:
        """Stop the clock, once the device has done what it was given."""
        self._norms.tolist()
        self._seconds += time.monotonic() - self._since

    def go_on(self) -> None:
        """Start the clock again."""
        self._since = time.monotonic()

    def reduce(self) -> dict[str, float]:
        """Means over all pairs of all ranks, and rates over the time up to the pause; all ranks must call."""
        total, count = self._norms.tolist()
        return {**self.sums.reduce(self._seconds), "grad_norm": total / max(1.0, count)}

    def unlogged(self) -> dict[str, Any]:
        """What is not logged yet, as JSON has it; all ranks must call.

        Each rank's own sums: on as many ranks the means then come out as if the run had not stopped, bit for bit.
        """
        sums = gather(self.sums.world, self.sums.sums.tolist())
        return {"sums": sums, "norms": self._norms.tolist(), "seconds": self._seconds}


def peak_memory_gib(world: World) -> float:
    """Largest memory that any rank has held: the GPU's allocations, or on a CPU the process's resident memory."""
    if world.on_cpu:
        mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    else:
        mine = torch.cuda.max_memory_allocated(world.device) / 2**30
    return float(all_reduce(torch.tensor(mine, device=world.device), "max"))

"""Metrics: sums over a job's items that stay on the device until a logged step, then means over all items of all ranks.

    BatchOutcome of each micro-batch -> MetricSums.add -> (logged step) reduce -> {name: mean}
    a save between logged steps: StepMetrics.unlogged -> manifest -> StepMetrics of the resumed run

The metrics' names are TRL's where TRL has them. A rate is per second of training steps; saves and evaluations are not
counted.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimind.ranks.collectives import all_reduce, gather
from minimind.ranks.world import World
from minimind.training.jobs.job import BatchOutcome, Job, TokenSums


class MetricSums:
    """Sums over items since the last logged step.

    Args:
        world: the ranks.
        job: names the metrics.
    """

    def __init__(self, world: World, job: Job) -> None:
        self.world = world
        self._item, self._parts, self._derived = job.item, job.metric_parts, job.derived
        self.names = ("loss", f"{job.name}_loss", "aux_loss", *job.metrics)
        self.token_names = job.token_metrics
        self.reset()

    def reset(self) -> None:
        """Set all sums to 0."""
        # Tokens, items, one sum per name, sum and number of tokens per name of a mean over tokens. In float32 the sums
        # of a long interval would lose digits of the mean.
        size = 2 + len(self.names) + 2 * len(self.token_names)
        self.sums = torch.zeros(size, dtype=torch.float64, device=self.world.device)

    def add(self, outcome: BatchOutcome, aux_loss: Tensor, row_tokens: int, weights: Tensor | None = None) -> None:
        """Add a micro-batch of N items.

        Args:
            outcome: its losses and metrics.
            aux_loss: scalar, the model's auxiliary loss.
            row_tokens: tokens of all its rows.
            weights: (N,) float64; 0 excludes an item.
        """
        # The first three columns are computed here, the rest by the job. One stack and one sum keep the number of small
        # kernels on a GPU low.
        losses, aux_loss = outcome.losses.detach(), aux_loss.detach()
        values = {name: outcome.metrics[name] for name in self.names[3:]}
        no_tokens = TokenSums(sums=torch.zeros_like(losses), counts=torch.zeros_like(losses))
        tokens = (outcome.token_metrics.get(name, no_tokens) for name in self.token_names)
        parts = [part for one in tokens for part in (one.sums, one.counts)]
        columns = torch.stack(
            (torch.ones_like(losses), losses + aux_loss, losses, aux_loss.expand_as(losses), *values.values(), *parts)
        ).double()
        if weights is not None:
            columns = columns * weights
        self.sums[1:] += columns.sum(1)
        self.sums[0] += row_tokens

    def reduce(self, seconds: float) -> dict[str, float]:
        """Means over all items of all ranks, and rates over the given seconds; all ranks must call."""
        # One collective and one transfer to the host for all metrics.
        totals = all_reduce(self.sums.clone()).tolist()
        (tokens, items), totals = totals[:2], totals[2:]
        # Behind the sums over items are those of the means over tokens.
        metrics = {name: total / items for name, total in zip(self.names, totals, strict=False)}
        for name, weight in self._parts.items():
            # The mean over a part that has no item does not exist.
            if share := metrics[weight]:
                metrics[name] /= share
            else:
                del metrics[name]
        pairs = zip(totals[len(self.names) :: 2], totals[len(self.names) + 1 :: 2], strict=True)
        # Without a token that counts there is no mean either.
        metrics |= {name: total / count for name, (total, count) in zip(self.token_names, pairs, strict=True) if count}
        metrics |= self._derived(metrics)
        metrics["tokens_per_second"] = tokens / seconds
        metrics[f"{self._item}_per_second"] = items / seconds
        metrics["memory_gib"], metrics["peak_memory_gib"] = memory_gib(self.world)
        return metrics


class StepMetrics:
    """Training steps since the last logged one: sums over items, gradient norms, and the time that the steps took.

    The clock stands until `resume`.

    Args:
        world: the ranks.
        job: names the metrics.
        unlogged: result of `unlogged` from the checkpoint that the run resumes; empty for a fresh run. That of a
            version with other metrics is left out: the first logged means then are over the steps since the checkpoint.
        clip: gradients are clipped to this norm; 0: they are not.
        others: what else is measured since the last logged step: the metrics so far -> more metrics, as a collective.
    """

    def __init__(
        self,
        world: World,
        job: Job,
        unlogged: Mapping[str, Any],
        *,
        clip: float = 0.0,
        others: Sequence[Callable[[Mapping[str, float]], Mapping[str, float]]] = (),
    ) -> None:
        self.sums = MetricSums(world, job)
        self._clip, self._others = clip, others
        self.reset()
        self._running = False  # the loop starts the clock when it starts to train
        # Manifests of earlier versions have no count of clipped norms.
        if unlogged.get("names") != self._names or len(unlogged["norms"]) != len(self._norms):
            return
        parts = torch.tensor(unlogged["sums"], dtype=torch.float64, device=world.device)
        if len(parts) == world.size:
            self.sums.sums += parts[world.rank]
        elif world.is_main:
            # The number of ranks has changed. Only the total over ranks matters, so one rank takes it.
            self.sums.sums += parts.sum(0)
        self._norms += torch.tensor(unlogged["norms"], dtype=torch.float64, device=world.device)
        self._seconds = unlogged["seconds"]

    def reset(self) -> None:
        """Set everything to 0 and restart the clock."""
        self.sums.reset()
        # Sum and count of norms, number of clipped ones. A step that float16's loss scaling skipped has no norm and is
        # not counted.
        self._norms = torch.zeros(3, dtype=torch.float64, device=self.sums.world.device)
        self._seconds, self._since = 0.0, time.monotonic()
        self._running = True

    def add_norm(self, norm: Tensor) -> None:
        """Add a step's gradient norm, a scalar that stays on the device."""
        # No `if`: it would wait for the device.
        finite, norm = norm.isfinite(), norm.nan_to_num(0.0, 0.0, 0.0)
        self._norms += torch.stack((norm, finite.to(norm.dtype), (norm > self._clip).to(norm.dtype)))

    def pause(self) -> None:
        """Stop the clock after the device has finished its queued work; no effect while the clock is stopped."""
        if self._running:
            self._norms.tolist()  # reading a result waits for the device
            self._seconds += time.monotonic() - self._since
            self._running = False

    def resume(self) -> None:
        """Start the clock again; no effect while it runs."""
        if not self._running:
            self._since = time.monotonic()
            self._running = True

    def reduce(self) -> dict[str, float]:
        """Means over all items of all ranks, and rates over the time up to the pause; all ranks must call."""
        total, count, clipped = self._norms.tolist()
        count = max(1.0, count)
        metrics = {**self.sums.reduce(self._seconds), "grad_norm": total / count}
        if self._clip:
            metrics["grad_clipped"] = clipped / count
        for measure in self._others:
            metrics |= measure(metrics)
        return metrics

    def unlogged(self) -> dict[str, Any]:
        """The steps since the last logged one, as JSON values; all ranks must call.

        Each rank's own sums are kept: on the same number of ranks the resumed run makes the same additions in the same
        order, so its means equal those of an uninterrupted run bit for bit.
        """
        # JSON prints the shortest text that reads back as the same float64, so nothing is lost.
        sums = gather(self.sums.world, self.sums.sums.tolist())
        return {"names": self._names, "sums": sums, "norms": self._norms.tolist(), "seconds": self._seconds}

    @property
    def _names(self) -> list[str]:
        return [*self.sums.names, *self.sums.token_names]


def memory_gib(world: World) -> tuple[float, float]:
    """Memory now and its peak, in GiB, each of the rank with most: a GPU's allocations, on a CPU the process's resident
    memory. All ranks must call."""
    if world.on_cpu:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        now = pages * resource.getpagesize() / 2**30
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # ru_maxrss is in KiB on Linux
    else:
        now = torch.cuda.memory_allocated(world.device) / 2**30
        peak = torch.cuda.max_memory_allocated(world.device) / 2**30
    # The kernel counts what a process holds now more coarsely than its peak.
    now, peak = all_reduce(torch.tensor((now, max(now, peak)), device=world.device), "max").tolist()
    return now, peak

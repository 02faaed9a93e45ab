"""Evaluation: metrics over held-out data at the start, every interval and at the end.

Start, Step -> evaluate all held-out items once over all ranks -> Evaluated
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from minimind.data.loader import eval_batches
from minimind.data.packs import Layout
from minimind.data.pair_tables import PairTables
from minimind.diagnosis.pair_signals import COLUMNS, HeldOut, Values
from minimind.engine.policy import Policy
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.events import End, Evaluated, Event, Listener, Start, Step, prefix_of
from minimind.training.jobs.job import Job
from minimind.training.kept_items import KeptItems
from minimind.training.metrics import MetricSums, StepMetrics
from minimind.training.step import eval_step, eval_together


class Evaluation(Listener):
    """Evaluates the policy on held-out data.

    Args:
        table: the held-out pairs of all sets.
        sets: name of each set -> the indices of its pairs; each is evaluated by itself.
        layout: how pairs become a batch.
        batch_size: pairs in a batch.
        interval: global steps between evaluations; 0: only at the start and at the end.
        job: computes the metrics, with the reference of these pairs.
        steps: training metrics, whose clock stops during an evaluation.
        emit: raises an event.
        keeps_pairs: `Evaluated` has the single pairs; the job has the metrics in `COLUMNS`, one value for each pair.
        keeps: values of single items, by the names of `BatchOutcome.of_items`, that `Evaluated` has too.
    """

    name = "evaluation"

    def __init__(
        self,
        *,
        table: PairTables,
        sets: Mapping[str, range],
        layout: Layout,
        batch_size: int,
        interval: int,
        job: Job,
        policy: Policy,
        world: World,
        watch: Watch,
        steps: StepMetrics,
        emit: Callable[[Event], None],
        keeps_pairs: bool = False,
        keeps: Sequence[str] = (),
    ) -> None:
        self._keeps_pairs, self._keeps = keeps_pairs, tuple(keeps)
        self._sets = sets
        self._table, self._layout, self._batch_size, self._interval = table, layout, batch_size, interval
        self._job, self._policy, self._world, self._watch = job, policy, world, watch
        self._steps, self._emit = steps, emit
        # Global steps of the last evaluation, and of the checkpoint that the run resumes.
        self._latest, self._resumed = -1, -1

    def on_start(self, event: Start) -> None:
        self._resumed = event.step
        # A resumed run has this evaluation in its metrics already.
        if event.step == 0:
            self.evaluate(0)

    def on_step(self, event: Step) -> None:
        if event.stopping:
            return  # a stop must not wait for an evaluation
        if event.last or (self._interval and event.step % self._interval == 0):
            self._steps.pause()
            self.evaluate(event.step)
            self._steps.resume()

    def on_end(self, event: End) -> None:
        # Where a listener has ended the run, the last step was not known to be the last.
        if event.finished and event.reason and self._latest != event.step and event.step != self._resumed:
            self._steps.pause()
            self.evaluate(event.step)

    def evaluate(self, step: int) -> None:
        """Compute the metrics of each set over all its items, each counted once, and raise `Evaluated`."""
        self._watch.enter("evaluating")
        self._latest = step
        for name, part in self._sets.items():
            self._policy.eval()
            metrics, columns = self._evaluate_part(part)
            pairs = HeldOut.of_columns(np.stack([columns[one] for one in COLUMNS])) if self._keeps_pairs else None
            kept = {one: columns[one] for one in self._keeps}
            self._policy.train()
            prefixed = {f"{prefix_of(name)}{metric}": value for metric, value in metrics.items()}
            self._emit(Evaluated(step=step, metrics=prefixed, items=len(part), name=name, pairs=pairs, kept=kept))

    def _evaluate_part(self, part: range) -> tuple[dict[str, float], dict[str, Values]]:
        """Metrics of a set, and what is kept of its single items."""
        started = time.monotonic()
        names = tuple(dict.fromkeys((*(COLUMNS if self._keeps_pairs else ()), *self._keeps)))
        kept = KeptItems(self._world, self._job, names) if names else None
        sums = kept or MetricSums(self._world, self._job)
        batches = eval_batches(
            self._table,
            self._layout,
            batch_size=self._batch_size,
            rank=self._world.rank,
            world_size=self._world.size,
            pin=self._world.pins_memory,
            part=part,
        )
        # An evaluation may take longer than --timeout; each batch is progress.
        if self._job.whole_batch:
            eval_together(self._policy, self._job, batches, sums, self._watch.tick)
        else:
            for batch, weights in batches:
                eval_step(self._policy, self._job, batch, weights, sums)
                self._watch.tick()
        metrics = sums.reduce(time.monotonic() - started)
        return metrics, {} if kept is None else dict(zip(names, kept.kept(), strict=True))

"""The training loop: takes global steps and raises events. It knows no objective, no file and no console.

batches of a step -> train_step -> [Log] -> Step -> next step;  a signal -> End(finished=False);
a listener that asks for it (`Halt`) -> End(finished=True) before the last step
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import torch

from minimind.data.packs import Batch
from minimind.engine.policy import Policy
from minimind.errors import TrainingError
from minimind.ranks.collectives import StopVote
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.events import End, Events, Halt, Log, Start, Step
from minimind.training.jobs.job import BatchOutcome, Job
from minimind.training.metrics import StepMetrics
from minimind.training.nonfinite import NonFiniteReport
from minimind.training.speed import Speed
from minimind.training.step import train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that the loop needs.

    Attributes:
        batches: global step after which to begin -> this rank's micro-batches of each following step.
        total_steps: the last global step.
        log_interval: global steps between logged steps; the first and the last are always logged.
        seed: of dropout.
        metrics: of the steps since the last logged one.
        speed: measures the steps' phases.
        nonfinite: makes the error of a step whose gradient is not finite.
        halt: by which listeners end the run early.
        met: called with a global step, one of its micro-batches and its outcome, as by `train_step`; may be None.
    """

    world: World
    watch: Watch
    policy: Policy
    job: Job
    batches: Callable[[int], Iterator[Sequence[Batch]]]
    total_steps: int
    log_interval: int
    seed: int
    metrics: StepMetrics
    speed: Speed
    events: Events
    nonfinite: NonFiniteReport
    halt: Halt
    met: Callable[[int, Batch, BatchOutcome], object] | None = None


def train(run: Run, start: int) -> bool:
    """Train from after global step `start` to the end; `start` 0 is a fresh run.

    Returns:
        Whether the run is finished, at its last step or where a listener ended it. False: a signal asked for a stop,
        and the listeners have saved the state.

    Raises:
        TrainingError: a gradient is not finite, or the state cannot be saved after a signal.
    """
    watch, vote = run.watch, StopVote(run.watch.timeout)
    # From here on a signal sets `stop_reason`; before, it ends the process at once, since there is nothing to save.
    watch.can_save()
    run.events.emit(Start(step=start, total_steps=run.total_steps))
    if run.halt.step is not None:
        # The run that wrote the checkpoint was ended early, and nothing has changed since.
        return _end_early(run, start)
    run.policy.train()
    run.metrics.resume()
    for step, batches in enumerate(run.speed.waiting(run.batches(start)), start=start + 1):
        watch.enter("data", step)
        # The vote travels while the step computes, so that it costs no time.
        vote.start(watch.stop_reason is not None)
        # Read before the step: the optimizer step advances the schedule.
        learning_rate = run.policy.learning_rate
        last = step == run.total_steps
        logged = step == 1 or step % run.log_interval == 0 or last
        _take_step(run, step, batches, logged)
        if logged:
            # `reduce` is a collective that waits for all ranks. That time is no training time.
            run.metrics.pause()
            metrics = {**run.metrics.reduce(), "learning_rate": learning_rate}
            run.events.emit(Log(step=step, metrics=metrics))
            run.metrics.reset()
        # Read in every step, the last one included: a vote that was started must be finished.
        stopping = vote.result() and not last
        # After Log: a save within this event keeps the sums that no step has logged, and those of this step would be
        # logged twice.
        run.events.emit(Step(step=step, last=last, stopping=stopping))
        if stopping:
            reason = watch.stop_reason or "another rank was asked to stop"
            run.events.emit(End(step=step, finished=False, reason=reason))
            return False
        # All ranks see the same request: listeners that halt decide on rank 0 or from values that are equal on all
        # ranks.
        if run.halt.step is not None and not last:
            return _end_early(run, step)
    run.events.emit(End(step=run.total_steps, finished=True))
    return True


def _end_early(run: Run, step: int) -> bool:
    run.events.emit(End(step=step, finished=True, reason=run.halt.reason))
    return True


def _take_step(run: Run, step: int, batches: Sequence[Batch], logged: bool) -> None:
    """Train on one global step's micro-batches of this rank."""
    # Dropout draws from a seed of the step's own, so a resumed run needs no saved generator state. The hash of numbers,
    # unlike that of texts, is the same in every process.
    torch.manual_seed(hash((run.seed, step, run.world.rank)))
    run.speed.begin(batches)
    try:
        train_step(
            run.policy,
            run.job,
            batches,
            run.metrics.sums,
            run.speed,
            distributions=logged and bool(run.job.token_metrics),
            met=None if run.met is None else functools.partial(run.met, step),
        )
    except TrainingError as error:
        raise run.nonfinite.error_at(step, batches, error) from error
    run.metrics.add_norm(run.policy.grad_norm)
    run.speed.end()

"""The order of events in a run: evaluate, train, log, save, evaluate again."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from minimind.config import TrainConfig
from minimind.data.loader import Layout, eval_batches, train_batches
from minimind.data.pack import PairBatch
from minimind.data.stream import PairStream
from minimind.data.table import PairTable
from minimind.engine import process
from minimind.engine.checkpoints import Checkpoints
from minimind.engine.policy import Policy
from minimind.engine.process import World
from minimind.engine.reference import RowReference
from minimind.errors import TrainingError
from minimind.training.console import Console
from minimind.training.metrics import MetricSums
from minimind.training.step import Objective, eval_step, train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a run is made of, ready to go.

    Attributes:
        reference, eval_reference: of the pairs in `table` and in `eval_table`.
        export: writes the weights; called after each checkpoint, by all ranks.
    """

    config: TrainConfig
    world: World
    policy: Policy
    reference: RowReference
    eval_reference: RowReference
    table: PairTable
    eval_table: PairTable | None
    stream: PairStream
    total_steps: int
    layout: Layout
    checkpoints: Checkpoints
    export: Callable[[], None]
    console: Console

    @property
    def objective(self) -> Objective:
        return Objective(beta=self.config.beta, average_log_prob=self.config.average_log_prob)


def train(run: Run, start: int) -> bool:
    """Train from after global step `start` to the end; `start` 0 is a fresh run.

    Returns:
        Whether the end was reached. If not, a signal asked for a stop, and the state after the last step is saved.
    """
    config, console, sums = run.config, run.console, MetricSums(run.world)
    watch, vote = run.world.watch, process.StopVote(run.world)
    watch.can_save()
    if start == 0:
        evaluate(run, 0)
    if start == run.total_steps:
        run.export()  # the run may have died after its last checkpoint and before its weights
    console.start(start, run.total_steps)
    run.policy.train()
    batches = train_batches(
        run.table, run.stream, run.layout, rank=run.world.rank, start=start + 1, end=run.total_steps
    )
    norms, training_seconds, clock = _NormMean(), 0.0, time.monotonic()
    for step, step_batches in enumerate(batches, start=start + 1):
        watch.enter("data", step)
        vote.ask()
        # Dropout draws from the step's own seed, so that going on needs no generator's state.
        torch.manual_seed(hash((config.seed, step, run.world.rank)))
        learning_rate = run.policy.learning_rate
        try:
            train_step(run.policy, run.reference, run.objective, step_batches, sums)
        except TrainingError as error:
            raise _at_step(run, step, step_batches, error) from error
        norms.add(run.policy.grad_norm)
        console.advance(step)
        last = step == run.total_steps
        if step == 1 or step % config.log_interval == 0 or last:
            grad_norm = norms.value()  # waits for the device, so that the time is the steps' own
            training_seconds += time.monotonic() - clock
            metrics = sums.reduce(training_seconds)
            metrics["grad_norm"] = grad_norm
            metrics["learning_rate"] = learning_rate
            record(run, step, metrics)
            console.log(step, run.stream.epoch_of(step), metrics)
            sums.reset()
            norms, training_seconds, clock = _NormMean(), 0.0, time.monotonic()
        if vote.answer() and not last:
            watch.enter("saving")
            run.checkpoints.save(run.policy, step)
            console.stop()
            reason = watch.stop_reason or "another rank was told to stop"
            console.say(f"{reason}: stopped after step {step}, which is saved; --from_resume 1 goes on from there")
            return False
        saves = last or (config.save_interval and step % config.save_interval == 0)
        evaluates = last or (config.eval_interval and step % config.eval_interval == 0)
        if saves or evaluates:
            training_seconds += time.monotonic() - clock
            if evaluates:
                evaluate(run, step)
            if saves:
                save(run, step)
            clock = time.monotonic()
    console.stop()
    return True


class _NormMean:
    """Mean gradient norm over steps, kept on the device; steps that float16's loss scaling skipped have none."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count: Tensor | float = 0.0

    def add(self, norm: Tensor) -> None:
        finite = norm.isfinite()
        self.total = self.total + norm.nan_to_num(0.0, 0.0, 0.0)
        self.count = self.count + finite

    def value(self) -> float:
        return float(self.total) / max(1.0, float(self.count))


def _at_step(run: Run, step: int, batches: Sequence[PairBatch], error: TrainingError) -> TrainingError:
    """The error with the step, and the pairs of every rank that were in it."""
    lines: list[list[int]] = process.gather(run.world, [line for batch in batches for line in batch.lines])
    listed = ", ".join(str(line) for line in sorted(line for part in lines for line in part))
    newest = run.checkpoints.folder / "latest"
    good = f"the last checkpoint is {newest.read_text()}" if newest.is_file() else "there is no checkpoint yet"
    told = TrainingError(
        f"step {step}: {error}; its update was not made, and {good}. Its pairs stand in {run.table.path} at lines "
        f"{listed}."
    )
    told.agreed = error.agreed
    return told


def evaluate(run: Run, step: int) -> None:
    """Metrics over the held-out pairs, each counted once, under `eval/`."""
    if run.eval_table is None:
        return
    run.world.watch.enter("evaluating")
    sums, started = MetricSums(run.world), time.monotonic()
    run.policy.eval()
    batches = eval_batches(
        run.eval_table,
        run.layout,
        batch_size=run.config.batch_size,
        rank=run.world.rank,
        world_size=run.world.size,
    )
    for batch, weights in batches:
        eval_step(run.policy, run.eval_reference, run.objective, batch, weights, sums)
        run.world.watch.tick()
    run.policy.train()
    metrics = {f"eval/{name}": value for name, value in sums.reduce(time.monotonic() - started).items()}
    record(run, step, metrics)
    run.console.say(
        f"evaluation at step {step}: loss {metrics['eval/loss']:.4f}, reward accuracy "
        f"{metrics['eval/rewards/accuracies']:.3f}, margin {metrics['eval/rewards/margins']:+.4f} "
        f"({len(run.eval_table)} held-out pairs)"
    )


def save(run: Run, step: int) -> None:
    """Write a checkpoint to go on from, and the weights to use."""
    run.world.watch.enter("saving")
    run.checkpoints.save(run.policy, step)
    run.export()
    run.console.say(f"saved step {step} under {run.config.save_dir}")


def record(run: Run, step: int, metrics: dict[str, float]) -> None:
    """Append to metrics.jsonl, and hand to DeepSpeed's monitor with the global step on the x-axis."""
    if not run.world.is_main:
        return
    entry = {"step": step, "epoch": round(run.stream.epoch_of(step), 6), **metrics}
    with (Path(run.config.save_dir) / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    if run.policy.monitor.enabled:
        run.policy.monitor.write_events([(name, value, step) for name, value in metrics.items()])

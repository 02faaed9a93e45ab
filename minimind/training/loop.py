"""The order of events in a run: evaluate, train, log, save, evaluate again."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from minimind.checkpoints.store import Checkpoints
from minimind.config import DPOConfig
from minimind.data.loader import Layout, eval_batches, train_batches
from minimind.data.packs import PairBatch
from minimind.data.sampler import PairSampler
from minimind.data.table import PairTable
from minimind.engine.policy import Policy
from minimind.engine.reference import RowReference
from minimind.errors import CheckpointError, TrainingError, WeightsError
from minimind.ranks import process
from minimind.ranks.process import World
from minimind.training.console import Console
from minimind.training.folder import append_line
from minimind.training.jobs.dpo import Objective, eval_step, train_step
from minimind.training.metrics import MetricSums, StepMetrics
from minimind.training.nonfinite import MicroBatch, blame, write_pairs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a run is made of, ready to go.

    Attributes:
        reference, eval_reference: of the pairs in `table` and in `eval_table`.
        checkpoints: None where states swap to NVMe, which cannot be gone on from.
        export: writes the weights; called after each checkpoint, by all ranks.
        unlogged: of the checkpoint that the run goes on from: metrics since the last logged step before it.
    """

    config: DPOConfig
    world: World
    policy: Policy
    reference: RowReference
    eval_reference: RowReference
    table: PairTable
    eval_table: PairTable | None
    stream: PairSampler
    total_steps: int
    layout: Layout
    checkpoints: Checkpoints | None
    export: Callable[[], None]
    unlogged: Mapping[str, Any]
    console: Console

    @property
    def objective(self) -> Objective:
        return Objective(beta=self.config.objective.beta, average_log_prob=self.config.objective.average_log_prob)


def train(run: Run, start: int) -> bool:
    """Train from after global step `start` to the end; `start` 0 is a fresh run.

    Returns:
        Whether the end was reached. If not, a signal asked for a stop, and the state after the last step is saved.

    Raises:
        TrainingError: a gradient is not finite; a signal asked for a stop, and the state cannot be saved.
    """
    config, console = run.config, run.console
    watch, vote = run.world.watch, process.StopVote(run.world)
    watch.can_save()
    if start == 0:
        evaluate(run, 0)
    if start == run.total_steps:
        run.export()  # the run may have died after its last checkpoint and before its weights
    console.start(start, run.total_steps)
    run.policy.train()
    batches = train_batches(
        run.table,
        run.stream,
        run.layout,
        rank=run.world.rank,
        start=start + 1,
        end=run.total_steps,
        pin=run.world.device.type == "cuda",
    )
    since = StepMetrics(run.world, run.unlogged)
    for step, step_batches in enumerate(batches, start=start + 1):
        watch.enter("data", step)
        vote.ask()
        # Dropout draws from the step's own seed, so that going on needs no generator's state.
        torch.manual_seed(hash((config.data.seed, step, run.world.rank)))
        learning_rate = run.policy.learning_rate
        try:
            train_step(run.policy, run.reference, run.objective, step_batches, since.sums)
        except TrainingError as error:
            raise _at_step(run, step, step_batches, error) from error
        since.add_norm(run.policy.grad_norm)
        console.advance(step)
        last = step == run.total_steps
        if step == 1 or step % config.run.log_interval == 0 or last:
            since.pause()
            metrics = {**since.reduce(), "learning_rate": learning_rate}
            record(run, step, metrics)
            console.log(step, run.stream.epoch_of(step), metrics)
            since.reset()
        if vote.answer() and not last:
            since.pause()
            save(run, step, since, last=True, weights=False)
            console.stop()
            stopped = f"{watch.stop_reason or 'another rank was told to stop'}: stopped after step {step}"
            if run.checkpoints is None:
                raise _lost(run, stopped)
            console.say(f"{stopped}, which is saved; --from_resume 1 goes on from there")
            return False
        saves = last or (config.run.save_interval and step % config.run.save_interval == 0)
        evaluates = last or (config.run.eval_interval and step % config.run.eval_interval == 0)
        if saves or evaluates:
            since.pause()
            if evaluates:
                evaluate(run, step)
            if saves:
                save(run, step, since, last=last)
            since.go_on()
    console.stop()
    return True


def _lost(run: Run, stopped: str) -> TrainingError:
    error = TrainingError(
        f"{stopped}. States that swap to NVMe are not saved, so there is no going on: start anew. The weights "
        f"after this step are in {run.config.run.save_dir}."
    )
    error.agreed = True
    return error


def _at_step(run: Run, step: int, batches: Sequence[PairBatch], error: TrainingError) -> TrainingError:
    """The error with the step and the pairs to blame; those of every rank that were in it are written to a file."""
    mine = [MicroBatch(lines=batch.lines, finite=ok) for batch, ok in zip(batches, error.finite, strict=True)]
    ranks = process.gather(run.world, mine)
    folder, data = Path(run.config.run.save_dir), run.table.path
    written = process.from_main(run.world, lambda: write_pairs(folder, step, data, ranks))
    good = "there is no checkpoint"
    if run.checkpoints is not None and (newest := run.checkpoints.folder / "latest").is_file():
        good = f"the last checkpoint is {newest.read_text()}"
    told = TrainingError(
        f"step {step}: {error}; its update was not made, and {good}. {blame(ranks, data)}. The step's pairs {written}."
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
        batch_size=run.config.optimisation.batch_size,
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


def save(run: Run, step: int, since: StepMetrics, *, last: bool, weights: bool = True) -> None:
    """Write a checkpoint to go on from, and the weights to use; if a disk is full or fails, say so and train on.
    Where there are no checkpoints the weights are always written.

    Raises:
        CheckpointError: on all ranks, if it was the last save and anything could not be written.
    """
    run.world.watch.enter("saving")
    failures, place, unlogged = [], run.stream.position_after(step), since.unlogged()
    checkpoints, parts = run.checkpoints, list[Callable[[], object]]()
    if checkpoints is not None:
        parts.append(lambda: checkpoints.save(run.policy, step, place, unlogged))
    if weights or checkpoints is None:
        parts.append(run.export)
    for write in parts:
        try:
            write()
        except (CheckpointError, WeightsError) as error:  # of all ranks alike
            failures.append(str(error))
    if not failures:
        run.console.say(f"saved step {step} under {run.config.run.save_dir}")
        return
    whole = process.from_main(run.world, checkpoints.newest) if checkpoints is not None else None
    told = f"NOT SAVED: step {step}: {'; '.join(failures)}. " + (
        f"The newest whole checkpoint is {whole}." if whole else "There is no whole checkpoint."
    )
    if last:
        again = "--from_resume 1 runs what is lost again" if checkpoints is not None else "start anew"
        lost = CheckpointError(f"{told} Make room, and {again}.")
        lost.agreed = True
        raise lost
    run.console.say(f"{told} Training goes on; the next try is at the next save.")
    record(run, step, {"save_failed": 1.0})


def record(run: Run, step: int, metrics: dict[str, float]) -> None:
    """Append to metrics.jsonl, and hand to DeepSpeed's monitor with the global step on the x-axis."""
    if not run.world.is_main:
        return
    entry = {"step": step, "epoch": round(run.stream.epoch_of(step), 6), **metrics}
    try:
        append_line(Path(run.config.run.save_dir) / "metrics.jsonl", json.dumps(entry))
        if run.policy.monitor.enabled:
            run.policy.monitor.write_events([(name, value, step) for name, value in metrics.items()])
    except OSError as error:  # a full disk costs records, not the run
        run.console.say(f"NOT LOGGED: step {step}: {error}")

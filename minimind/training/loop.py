"""The order of events in a run: evaluate, train, log, save, evaluate again."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from minimind.config import TrainConfig
from minimind.data.loader import Layout, eval_batches, train_batches
from minimind.data.stream import PairStream
from minimind.data.table import PairTable
from minimind.engine.checkpoints import Checkpoints
from minimind.engine.policy import Policy
from minimind.engine.process import World
from minimind.engine.reference import Reference
from minimind.training.console import Console
from minimind.training.metrics import MetricSums
from minimind.training.step import Objective, check_start, eval_step, train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a run is made of, ready to go.

    Attributes:
        export: writes the weights; called after each checkpoint, by all ranks.
    """

    config: TrainConfig
    world: World
    policy: Policy
    reference: Reference
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


def train(run: Run, start: int) -> None:
    """Train from after global step `start` to the end; `start` 0 is a fresh run."""
    config, console, sums = run.config, run.console, MetricSums(run.world)
    if start == 0:
        evaluate(run, 0)
    console.start(start, run.total_steps)
    run.policy.train()
    batches = train_batches(
        run.table, run.stream, run.layout, rank=run.world.rank, start=start + 1, end=run.total_steps
    )
    grad_norms, training_seconds, clock = 0.0 * run.policy.grad_norm, 0.0, time.monotonic()
    logged = start
    for step, step_batches in enumerate(batches, start=start + 1):
        # Dropout draws from the step's own seed, so that going on needs no generator's state.
        torch.manual_seed(hash((config.seed, step, run.world.rank)))
        learning_rate = run.policy.learning_rate
        if step == 1:
            check_start(run.policy, run.reference, step_batches[0], config.dtype)
        train_step(run.policy, run.reference, run.objective, step_batches, sums)
        grad_norms = grad_norms + run.policy.grad_norm
        console.advance(step)
        last = step == run.total_steps
        if step == 1 or step % config.log_interval == 0 or last:
            float(grad_norms)  # waits for the device, so that the time is the step's own
            training_seconds += time.monotonic() - clock
            metrics = sums.reduce(training_seconds)
            metrics["grad_norm"] = float(grad_norms) / (step - logged)
            metrics["learning_rate"] = learning_rate
            record(run, step, metrics)
            console.log(step, run.stream.epoch_of(step), metrics)
            sums.reset()
            grad_norms, training_seconds, logged, clock = 0.0 * grad_norms, 0.0, step, time.monotonic()
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


def evaluate(run: Run, step: int) -> dict[str, float] | None:
    """Metrics over the held-out pairs, each counted once, under `eval/`; None without any."""
    if run.eval_table is None:
        return None
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
        eval_step(run.policy, run.reference, run.objective, batch, weights, sums)
    run.policy.train()
    metrics = {f"eval/{name}": value for name, value in sums.reduce(time.monotonic() - started).items()}
    record(run, step, metrics)
    run.console.say(
        f"evaluation at step {step}: loss {metrics['eval/loss']:.4f}, reward accuracy "
        f"{metrics['eval/rewards/accuracies']:.3f}, margin {metrics['eval/rewards/margins']:+.4f} "
        f"({len(run.eval_table)} held-out pairs)"
    )
    return metrics


def save(run: Run, step: int) -> None:
    """Write a checkpoint to go on from, and the weights to use."""
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

"""Runs this project's training script and records times and memory.

    deepspeed tests/benchmarks/rank.py tests.benchmarks.ours FLAGS      marks, timers -> minimind.training.run.main

Each mark is recorded once, so the timed steps are not slowed down. With the option `timers` every call of a step's
parts is timed too; with `profiled` torch's profiler separates kinds of work. Such runs are not compared with other
trainers.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from minimind.engine.policy import Policy
from minimind.engine.reference import LiveReference
from minimind.engine.reference_cache import CachedReference
from minimind.native import products
from minimind.training import loop, run
from minimind.training.console import Console
from minimind.training.setup import assemble, engines, references
from tests.benchmarks.common import DEVICE, Task, memory_of, now, read_task, used_gib
from tests.benchmarks.rank import STARTED

# Parts of a step: class, method, name of the part.
PARTS = (
    (LiveReference, "score", "reference"),
    (CachedReference, "score", "reference"),
    (Policy, "score", "policy forward"),
    (Policy, "backward", "backward"),
    (Policy, "step", "optimizer"),
)

# Matrix products by their names in torch's profiler. The last one is this project's kernel, named below.
_MATMUL = "native::matmul"
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::_grouped_mm", _MATMUL)


class Watch:
    """Times and memory of this rank's run.

    Attributes:
        marks: name -> time, in seconds since the epoch.
        steps: seconds of each part, by global step; empty without timers.
        kinds: seconds of each kind of work in all timed steps; empty unless profiled.
        fill_seconds: seconds of filling the reference's cache; None without a cache.
    """

    def __init__(self) -> None:
        self.marks: dict[str, float] = {"launcher": float(os.environ[STARTED])}
        self.steps: list[dict[str, float]] = []
        self.kinds: dict[str, float] = {}
        self.start_gib = used_gib()
        self.peak_gib = 0.0
        self.first_step_cpu_seconds = 0.0
        self.fill_seconds: float | None = None
        self.step_started = 0.0

    def mark(self, name: str) -> None:
        if name not in self.marks:
            self.marks[name] = time.time()
            if name == "first step":
                times = os.times()
                self.first_step_cpu_seconds = times.user + times.system

    def mark_after(self, owner: Any, name: str, label: str) -> None:
        """Mark the first return of a function."""
        inner = getattr(owner, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            value = inner(*args, **kwargs)
            self.mark(label)
            return value

        setattr(owner, name, outer)

    def time_fill(self, fill: Callable[..., None]) -> Callable[..., None]:
        """Record the seconds of scoring all pairs in advance, the construction of the engine included."""

        def timed(*args: Any, **kwargs: Any) -> None:
            started = now()
            fill(*args, **kwargs)
            self.fill_seconds = now() - started

        return timed

    def time_calls(self, owner: Any, name: str, part: str) -> None:
        """Add the seconds of each call within a step to a part of it."""
        inner = getattr(owner, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            started = now()
            value = inner(*args, **kwargs)
            if self.steps:
                self.steps[-1][part] = self.steps[-1].get(part, 0.0) + now() - started
            return value

        setattr(owner, name, outer)

    def time_data(self, batches: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """Start a step when its batches are requested; the wait for them is the part `data`."""

        def timed(*args: Any, **kwargs: Any) -> Iterator[Any]:
            inner = batches(*args, **kwargs)
            while True:
                self.step_started = now()
                try:
                    value = next(inner)
                except StopIteration:
                    return
                self.steps.append({"data": now() - self.step_started})
                yield value

        return timed

    def end_step(self, log: Callable[..., None]) -> Callable[..., None]:
        """End a step when it is logged. Saving is not part of it, as for the other trainers."""

        def logged(*args: Any, **kwargs: Any) -> None:
            log(*args, **kwargs)
            self.peak_gib = used_gib(peak=True)
            if self.steps:
                parts = self.steps[-1]
                parts["everything else"] = now() - self.step_started - sum(parts.values())

        return logged

    def profile(self, step: Callable[..., None], task: Task) -> Callable[..., None]:
        """Profile the timed steps. The whole part `optimizer` counts as work of the optimizer."""
        profiler = torch.profiler.profile()
        name_products()
        self.time_calls(Policy, "step", "optimizer")
        done = itertools.count()

        def profiled(*args: Any, **kwargs: Any) -> None:
            number = next(done)
            if number == task.warmup_steps:
                self.steps = [{}]
                profiler.start()
                self.step_started = now()
            step(*args, **kwargs)
            if number == task.warmup_steps + task.steps - 1:
                total = now() - self.step_started
                profiler.stop()
                self.kinds = kinds_of(profiler.key_averages(), self.steps[-1]["optimizer"], total)

        return profiled

    def write(self, path: Path, trained: loop.Run) -> None:
        """Write everything for the driver, while the engines still exist."""
        parts = (trained.policy, trained.job.reference)
        held = [engine for part in parts if (engine := getattr(part, "engine", None))]
        # DeepSpeed's optimizer wraps torch's; at stage 0 in float32 there is only torch's.
        optimizer = trained.policy.engine.optimizer
        optimizer = getattr(optimizer, "optimizer", optimizer)
        memory = memory_of(self.peak_gib, self.start_gib, [engine.module for engine in held], optimizer)
        path.write_text(
            json.dumps(
                {
                    **memory,
                    "marks": self.marks,
                    "before_seconds": self.fill_seconds,
                    "first_step_cpu_seconds": self.first_step_cpu_seconds,
                    "steps": self.steps,
                    "kinds": self.kinds,
                }
            )
        )


def name_products() -> None:
    """Give this project's products a name in torch's profiler."""
    inner = products.call

    def call(name: str, *arguments: Any) -> Any:
        if name not in ("matmul", "matmul_swiglu"):
            return inner(name, *arguments)
        with torch.profiler.record_function(_MATMUL):
            return inner(name, *arguments)

    products.call = call


def kinds_of(events: Iterable[Any], optimizer: float, total: float) -> dict[str, float]:
    """Seconds of each kind of work: matrix products, attention, optimizer, everything else."""
    kinds = {"matrix products": 0.0, "attention": 0.0, "optimizer": optimizer}
    for event in events:
        microseconds = event.self_device_time_total if DEVICE.type == "cuda" else event.self_cpu_time_total
        if event.key in _PRODUCTS:
            kinds["matrix products"] += microseconds / 1e6
        elif "attention" in event.key.lower():
            kinds["attention"] += microseconds / 1e6
    return {**kinds, "everything else": total - sum(kinds.values())}


def main() -> None:
    task, watch = read_task(), Watch()
    watch.mark("imports")
    watch.mark_after(run, "start_rank", "process group")
    watch.mark_after(run, "prepare", "flags and files")
    watch.mark_after(run, "load_data", "pairs")
    watch.mark_after(engines, "Policy", "policy")
    watch.mark_after(engines, "open_references", "reference")
    watch.mark_after(loop, "train_step", "first step")
    if task.options.get("timers"):
        for owner, name, part in PARTS:
            watch.time_calls(owner, name, part)
        assemble.train_batches = watch.time_data(assemble.train_batches)
    if task.options.get("profiled"):
        loop.train_step = watch.profile(loop.train_step, task)
    references._fill = watch.time_fill(references._fill)
    Console.log = watch.end_step(Console.log)
    train = run.train

    def train_and_write(trained: loop.Run, start: int) -> bool:
        finished = train(trained, start)
        watch.write(task.path / f"watch-{trained.world.rank}.json", trained)
        return finished

    run.train = train_and_write
    run.main()


if __name__ == "__main__":
    main()

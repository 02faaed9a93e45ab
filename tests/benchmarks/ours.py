"""This project's training script, watched: what `launch/train_dpo.py` runs, with the clock and the memory written down.

    deepspeed tests/benchmarks/rank.py tests.benchmarks.ours FLAGS      marks, timers -> minimind.training.run.main

Marks are taken once each, so timed steps stay what they are. With the option `timers` every call of a step's parts is
timed as well; that run is not one of those that are compared.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minimind.engine import process
from minimind.engine.policy import Policy
from minimind.engine.reference import Reference
from minimind.engine.reference_cache import CachedReference
from minimind.training import loop, references, run
from minimind.training.console import Console
from tests.benchmarks.common import memory_of, now, read_task, used_gib
from tests.benchmarks.rank import STARTED

# Parts of a step: what is timed, and its name.
PARTS = (
    (Reference, "row_sums", "reference"),
    (CachedReference, "row_sums", "reference"),
    (Policy, "score", "policy forward"),
    (Policy, "backward", "backward"),
    (Policy, "step", "optimizer"),
)


class Watch:
    """What is known of this rank's run.

    Attributes:
        marks: when (seconds since the epoch) something was first reached.
        steps: per global step the seconds of each part; empty without timers.
        fill_seconds: of filling the reference's cache; None where there is none.
    """

    def __init__(self) -> None:
        self.marks: dict[str, float] = {"launcher": float(os.environ[STARTED])}
        self.steps: list[dict[str, float]] = []
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
        """How long the reference took to score all pairs in advance, its engine's making included."""

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
        """A step begins when its batches are asked for; waiting for them is its part `data`."""

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
        """A step ends when it is logged: what it saves is no part of it, and of no other trainer's."""

        def logged(*args: Any, **kwargs: Any) -> None:
            log(*args, **kwargs)
            self.peak_gib = used_gib(peak=True)
            if self.steps:
                parts = self.steps[-1]
                parts["everything else"] = now() - self.step_started - sum(parts.values())

        return logged

    def write(self, path: Path, trained: loop.Run) -> None:
        """Leave it all to the driver; the engines are still whole."""
        engines = [engine for part in (trained.policy, trained.reference) if (engine := getattr(part, "engine", None))]
        # DeepSpeed's optimizer, and within it torch's; at stage 0 in float32 there is only the latter.
        optimizer = trained.policy.engine.optimizer
        optimizer = getattr(optimizer, "optimizer", optimizer)
        memory = memory_of(self.peak_gib, self.start_gib, [engine.module for engine in engines], optimizer)
        path.write_text(
            json.dumps(
                {
                    **memory,
                    "marks": self.marks,
                    "before_seconds": self.fill_seconds,
                    "first_step_cpu_seconds": self.first_step_cpu_seconds,
                    "steps": self.steps,
                }
            )
        )


def main() -> None:
    task, watch = read_task(), Watch()
    watch.mark("imports")
    watch.mark_after(process, "start", "process group")
    watch.mark_after(run, "prepare", "flags and files")
    watch.mark_after(run, "load_pairs", "pairs")
    watch.mark_after(run, "Policy", "policy")
    watch.mark_after(run, "open_references", "reference")
    watch.mark_after(loop, "train_step", "first step")
    if task.options.get("timers"):
        for owner, name, part in PARTS:
            watch.time_calls(owner, name, part)
        loop.train_batches = watch.time_data(loop.train_batches)
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

"""Measures what phase times, MFU, experts' load, TensorBoard and the guard add to the steps of a real run, in pairs.

    python -m tests.benchmarks.listeners_cost [--pairs 60] [FLAGS OF train_dpo.py]

One run takes the batches of each step twice, with and without these measures, and every other pair begins with the
other one, so that what else the machine does meets both. Without them the watch hears of the phases directly and the
experts' hooks are gone. What happens only in a logged step, at an evaluation or at a save is timed there, and divided
by the steps between. Medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from minimind.model.moe import Experts
from minimind.training import export, loop, run
from minimind.training.events import Log, Start
from minimind.training.loop import Run
from tests.benchmarks.common import DEVICE, now, processor_name

# Listeners whose events are timed; the rest of the run has them anyway.
LISTENERS = ("board", "guard")
WARM_UP = 3
# Steps between two events of a kind, for the share of a step: --log_interval and --save_interval by default, and an
# evaluation as often.
BETWEEN = 100


def clock() -> float:
    """On a CPU processor time, which other work on the machine disturbs less."""
    return time.process_time() if DEVICE.type == "cpu" else now()


class Pairs:
    """The measurement, in place of the training loop.

    Args:
        number: of pairs.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def train(self, trained: Run, start: int) -> bool:
        for listener in trained.events._listeners:
            if listener.name in LISTENERS:
                for event in ("log", "evaluated", "saved"):
                    self.timed(listener, f"on_{event}", f"{listener.name}, {event}")
        self.timed(export, "_moved", "weights that have moved, saved")
        self.seconds["reduce, log"] = []
        trained.watch.can_save()
        trained.events.emit(Start(step=0, total_steps=trained.total_steps))
        trained.policy.train()
        bare = SimpleNamespace(begin=lambda batches: None, enter=trained.watch.enter, end=lambda: None)
        without = dataclasses.replace(trained, speed=bare)
        hooks = Hooks(trained)
        trained.metrics.resume()
        for pair, batches in enumerate(self.batches(trained)):
            for measured in (True, False) if pair % 2 else (False, True):
                hooks.put(measured)
                started = clock()
                loop._take_step(trained if measured else without, pair + 1, batches, False)
                if pair >= WARM_UP:
                    self.seconds["with" if measured else "without"].append(clock() - started)
        hooks.put(True)
        self.log(trained)
        saving = next(one for one in trained.events._listeners if one.name == "saving")
        saving.save(self.number, last=False)
        self.report()
        return True

    def batches(self, trained: Run) -> Iterator[Any]:
        while True:
            for batches in trained.batches(0):
                if len(self.seconds["with"]) >= self.number:
                    return
                yield batches

    def log(self, trained: Run) -> None:
        trained.metrics.pause()
        for _ in range(10):
            others = trained.metrics._others
            metrics = {"tokens_per_second": 1.0}
            trained.speed._steps = trained.speed._tokens = 1  # each of them is the end of a window
            started = now()
            for measure in others:
                measure(metrics)
            self.seconds["reduce, log"].append(now() - started)
        metrics = {**trained.metrics.sums.reduce(1.0), "learning_rate": 1e-6}
        trained.events.emit(Log(step=self.number, metrics=metrics))

    def timed(self, owner: Any, name: str, what: str) -> None:
        inner = getattr(owner, name)

        def outer(*arguments: Any) -> Any:
            started = time.perf_counter()
            value = inner(*arguments)
            self.seconds[what].append(time.perf_counter() - started)
            return value

        setattr(owner, name, outer)

    def report(self) -> None:
        bare, measured = self.seconds.pop("without"), self.seconds.pop("with")
        step = statistics.median(bare)
        differences = [a / b - 1 for a, b in zip(measured, bare, strict=True)]
        quarters = statistics.quantiles(differences, n=4)
        print(f"\n{processor_name()}; {len(bare)} pairs of steps, {step:.3f} s each")
        print(
            f"every step: {statistics.median(differences):+.2%} (quartiles {quarters[0]:+.2%}, {quarters[2]:+.2%}); "
            f"ratio of medians {statistics.median(measured) / step - 1:+.2%}"
        )
        total = 0.0
        for what, times in self.seconds.items():
            seconds = statistics.median(times) if times else 0.0
            total += seconds
            print(f"{what}: {1000 * seconds:.2f} ms, every {BETWEEN} steps {seconds / BETWEEN / step:.3%} of a step")
        print(f"sum of these: {total / BETWEEN / step:.3%} of a step")


class Hooks:
    """Takes the experts' hooks away and puts them back."""

    def __init__(self, trained: Run) -> None:
        layers = [one for one in trained.policy.engine.module.modules() if isinstance(one, Experts)]
        self._hooks = [(layer._forward_pre_hooks, dict(layer._forward_pre_hooks)) for layer in layers]

    def put(self, there: bool) -> None:
        for now_there, all_of_them in self._hooks:
            now_there.clear()
            if there:
                now_there.update(all_of_them)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=60)
    own, flags = parser.parse_known_args(argv)
    measured = Pairs(own.pairs)
    run.train = measured.train
    run.main(["--deepspeed", "ds_configs/zero2.json", "--save_dir", "out/listeners_cost", *flags])


if __name__ == "__main__":
    main(sys.argv[1:])

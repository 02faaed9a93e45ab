"""Measures what phase times, MFU, experts' load, TensorBoard and the guard add to the steps of a real run.

    python -m tests.benchmarks.listeners_cost [--quads 150] [FLAGS OF train_dpo.py]

Within every step, in two ways: the processor time of the added calls themselves, and that of whole steps with and
without them. A quad takes one batch four times, with, without, without, with, or the other way round, so that what else
the machine does, and its drift, meet both alike; the seconds are those of the training thread, which other programs do
not add to, though they slow it. Figures are medians over quads and ratios of the faster halves, with intervals from a
bootstrap over quads. What happens only in a logged step, at an evaluation or at a save is timed there, and divided by
the steps between.

Without: the watch hears of the phases directly, the experts' hooks are gone, and no listener hears of the step.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minimind.training import export, loop, run
from minimind.training.events import Log, Start, Step
from minimind.training.expert_load import ExpertLayers, _AddChosen, _AddEnds
from minimind.training.loop import Run
from tests.benchmarks.common import DEVICE, now, processor_name

# Listeners whose other events are timed; the rest of the run has them anyway.
LISTENERS = ("board", "guard")
# Steps before the first quad, and different batches that the quads take in turn.
WARM_UP, BATCHES = 6, 4
# Of a quad: with or without the measures.
ORDERS = ((True, False, False, True), (False, True, True, False))
# Steps between two events of a kind, for the share of a step: --log_interval and --save_interval by default, and an
# evaluation as often.
BETWEEN = 100
# Enough steps for the schedule, whatever the number of quads is.
FLAGS = ("--deepspeed", "ds_configs/zero2.json", "--save_dir", "out/listeners_cost", "--epochs", "1000")
RESAMPLES = 4000

Values = NDArray[np.float64]


def clock() -> float:
    """Processor time of this thread; on a GPU the time until it is idle."""
    return time.thread_time() if DEVICE.type == "cpu" else now()


def interval(quads: Values, figure: Callable[[Values], Values]) -> tuple[float, float, float]:
    """A figure of quads, and its 95 % interval by a bootstrap over quads.

    Args:
        quads: (n, 2) mean seconds of a step with and without.
        figure: (..., n, 2) -> (...).
    """
    picks = np.random.default_rng(0).integers(len(quads), size=(RESAMPLES, len(quads)))
    low, high = np.quantile(figure(quads[picks]), (0.025, 0.975))
    return float(figure(quads)), float(low), float(high)


def over_levels(quads: Values) -> Values:
    """Quads over the level of their batch, of which the larger ones take longer; they take the batches in turn."""
    levels = np.array([np.median(quads[first::BATCHES, 1]) for first in range(BATCHES)])
    return quads / levels[np.arange(len(quads)) % BATCHES, None]


def median_difference(quads: Values) -> Values:
    """Median over quads of with / without - 1."""
    return np.median(quads[..., 0] / quads[..., 1] - 1, axis=-1)


def faster_halves(quads: Values) -> Values:
    """Ratio - 1 of the means of the faster halves, each of its own kind: the slower ones are what others disturb."""
    half = -(-quads.shape[-2] // 2)
    means = np.sort(quads, axis=-2)[..., :half, :].mean(axis=-2)
    return means[..., 0] / means[..., 1] - 1


class Costs:
    """The measurement, in place of the training loop.

    Args:
        quads: their number.
    """

    def __init__(self, quads: int) -> None:
        self.quads = quads
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
        trained.metrics.resume()
        steps = Steps(trained)
        for _ in range(WARM_UP):
            steps.take(True)
        quads = np.array(list(steps.quads(self.quads)))
        own = steps.own_seconds(max(20, self.quads // 4))
        self.log(trained)
        saving = next(one for one in trained.events._listeners if one.name == "saving")
        saving.save(self.quads, last=False)
        report_steps(quads, own)
        self.report_rest(float(np.median(quads[:, 1])))
        return True

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
        trained.events.emit(Log(step=self.quads, metrics=metrics))

    def timed(self, owner: Any, name: str, what: str) -> None:
        inner = getattr(owner, name)

        def outer(*arguments: Any) -> Any:
            started = time.perf_counter()
            value = inner(*arguments)
            self.seconds[what].append(time.perf_counter() - started)
            return value

        setattr(owner, name, outer)

    def report_rest(self, step: float) -> None:
        total = 0.0
        for what, times in self.seconds.items():
            seconds = statistics.median(times) if times else 0.0
            total += seconds
            print(f"{what}: {1000 * seconds:.2f} ms, every {BETWEEN} steps {seconds / BETWEEN / step:.3%} of a step")
        print(f"sum of these: {total / BETWEEN / step:.3%} of a step")


class Steps:
    """Takes steps of a run with and without the measures."""

    def __init__(self, trained: Run) -> None:
        self._run, self._number = trained, itertools.count(1)
        bare = SimpleNamespace(begin=lambda batches: None, enter=trained.watch.enter, end=lambda: None)
        self._bare = dataclasses.replace(trained, speed=bare, met=None)
        self._hooks = Hooks(trained)
        batches = trained.batches(0)
        self._batches = itertools.cycle(list(itertools.islice(batches, BATCHES)))
        batches.close()
        self._batch: Sequence[Any] = next(self._batches)

    def take(self, measured: bool) -> float:
        """Take a step; returns its seconds."""
        self._hooks.put(measured)
        started = clock()
        loop._take_step(self._run if measured else self._bare, next(self._number), self._batch, False)
        if measured:
            self.hear()
        return clock() - started

    def hear(self) -> None:
        """All listeners hear of a step at which none has periodic work."""
        self._run.events.emit(Step(step=1, last=False))

    def quads(self, number: int) -> Iterator[tuple[float, float]]:
        """Mean seconds of a step with and without, of each quad."""
        for quad in range(number):
            self._batch = next(self._batches)
            seconds: dict[bool, list[float]] = {True: [], False: []}
            for measured in ORDERS[quad // BATCHES % 2]:
                seconds[measured].append(self.take(measured))
            yield statistics.mean(seconds[True]), statistics.mean(seconds[False])

    def own_seconds(self, number: int) -> list[float]:
        """Seconds of the added calls of each of so many steps."""
        own = OwnTime()
        speed, inner = self._run.speed, self._hooks.ours
        for name in ("begin", "enter", "end"):
            setattr(speed, name, own.timed(getattr(speed, name)))
        self._hooks.ours = {
            layer: {key: own.timed(hook) for key, hook in hooks.items()} for layer, hooks in inner.items()
        }
        hear, found = own.timed(self.hear), []
        for _ in range(number):
            self._batch, own.seconds = next(self._batches), 0.0
            self._hooks.put(False)
            self._hooks.put(True)
            loop._take_step(self._run, next(self._number), self._batch, False)
            hear()
            found.append(own.seconds)
        for name in ("begin", "enter", "end"):
            delattr(speed, name)
        self._hooks.put(False)
        self._hooks.ours = inner
        self._hooks.put(True)
        return found


class OwnTime:
    """Adds up the processor time of calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def outer(*arguments: Any, **named: Any) -> Any:
            started = time.thread_time()
            try:
                return inner(*arguments, **named)
            finally:
                self.seconds += time.thread_time() - started

        return outer


class Hooks:
    """Takes the experts' hooks away and puts them back.

    Attributes:
        ours: experts of a layer -> key and hook.
    """

    def __init__(self, trained: Run) -> None:
        layers = ExpertLayers.of(trained.policy.engine.module.model).counted
        kinds = (_AddEnds, _AddChosen)
        self.ours: dict[Any, dict[int, Any]] = {
            layer: {key: hook for key, hook in layer._forward_pre_hooks.items() if isinstance(hook, kinds)}
            for layer in layers
        }

    def put(self, there: bool) -> None:
        for layer, hooks in self.ours.items():
            for key, hook in hooks.items():
                if there:
                    layer._forward_pre_hooks[key] = hook
                else:
                    layer._forward_pre_hooks.pop(key, None)


def report_steps(quads: Values, own: Sequence[float]) -> None:
    step, calls = float(np.median(quads[:, 1])), statistics.median(own)
    print(f"\n{processor_name()}; {len(quads)} quads, {step:.3f} s a step")
    print(f"every step, the added calls: {calls / step:.3%} of it ({1e6 * calls:.0f} us)")
    for what, figure in (("median of quads", median_difference), ("faster halves", faster_halves)):
        value, low, high = interval(over_levels(quads), figure)
        print(f"every step, {what}: {value:+.2%} (95 % interval {low:+.2%} to {high:+.2%})")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quads", type=int, default=150)
    own, flags = parser.parse_known_args(argv)
    costs = Costs(own.quads)
    run.train = costs.train
    run.main([*FLAGS, *flags])


if __name__ == "__main__":
    main(sys.argv[1:])

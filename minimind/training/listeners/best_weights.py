"""Keeps the weights of the best evaluation (--save_best), and ends a run without progress (--early_stop).

Evaluated -> is its metric the best so far? -> weights into save_dir/best; not for N evaluations -> Halt
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minimind.errors import WeightsError
from minimind.ranks.collectives import from_main
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.best import Best, Criterion
from minimind.training.console import Console
from minimind.training.events import End, Evaluated, Halt, Listener, Start
from minimind.training.export import BEST_RECORD


class BestWeights(Listener):
    """Writes the weights whenever an evaluation is better than all before it.

    The evaluation at step 0 is what training must improve on; its weights are the start weights, which exist already.

    Args:
        criterion: what is better.
        prefix: of the metrics of the set of held-out data that decides; other sets are no evaluations here.
        patience: evaluations without a better one after which the run ends; None: it never does.
        export: writes the weights with a record of why; all ranks call it. Raises WeightsError on all ranks.
        folder: where it writes them.
        data: hash of the held-out data; values on other data are not compared.
        halt: ends the run.
    """

    name = "best_weights"

    def __init__(
        self,
        *,
        criterion: Criterion,
        prefix: str,
        patience: int | None,
        export: Callable[[Mapping[str, object]], None],
        folder: Path,
        data: str,
        halt: Halt,
        console: Console,
        world: World,
        watch: Watch,
    ) -> None:
        self._best, self._patience, self._export, self._folder = Best(criterion), patience, export, folder
        self._data, self._prefix = data, prefix
        self._halt, self._console, self._world, self._watch = halt, console, world, watch

    def on_start(self, event: Start) -> None:
        best = self._best
        if best.step and not from_main(self._world, (self._folder / BEST_RECORD).is_file):
            # A value without its weights would keep worse ones from being written.
            self._console.say(f"{self._folder} is not there: the next evaluation counts as the best so far")
            self._best = Best(best.criterion)
        if event.step < event.total_steps:
            self._stop_if_stuck(event.step)

    def on_evaluated(self, event: Evaluated) -> None:
        if event.prefix != self._prefix:
            return
        metric = self._best.criterion.metric
        # Ranks measure rates by their own clocks, so rank 0's value decides for all. A metric over a part of the data
        # that is empty does not exist.
        value = from_main(self._world, lambda: event.metrics.get(metric, math.nan))
        before = self._best.state()
        if self._best.offer(event.step, value):
            if event.step and not self._write(event.step):
                self._best.restore(before)
                self._best.since = 0
        else:
            self._stop_if_stuck(event.step)

    def _write(self, step: int) -> bool:
        self._watch.enter("exporting")
        try:
            self._export(self._best.state())
        except WeightsError as error:
            self._console.say(f"NOT SAVED: best weights, step {step}: {error}. Training continues.")
            return False
        self._console.say(f"best so far: {self._best}; saved in {self._folder}")
        return True

    def _stop_if_stuck(self, step: int) -> None:
        if self._patience is not None and self._best.since >= self._patience:
            best = f"the best is {self._best}" if self._best.step is not None else "none had a number"
            self._halt.ask(step, f"{self._best.since} evaluations without a better one (--early_stop); {best}")

    def on_end(self, event: End) -> None:
        if not event.finished:
            return
        if self._best.step is None:
            self._console.say(f"best weights: none, {self._best.criterion.metric} was never a number")
        elif self._best.step == 0:
            self._console.say(f"best weights: the start weights, {self._best}; no evaluation was better")
        else:
            self._console.say(f"best weights: {self._best}, in {self._folder}")

    def state(self) -> dict[str, Any]:
        return {**self._best.state(), "data": self._data}

    def restore(self, state: Mapping[str, Any]) -> None:
        anew = "the next evaluation counts as the best so far"
        if state["data"] != self._data:
            self._console.say(f"--save_best: the checkpoint's best is of other held-out data; {anew}")
        elif not self._best.restore(state):
            metric = self._best.criterion.metric
            self._console.say(f"--save_best {metric}: the checkpoint has the best {state['metric']}; {anew}")

"""Metrics on disk: metrics.jsonl in the run's folder, and DeepSpeed's monitor (TensorBoard and others).

Log, Evaluated, Sampled, Saved -> one JSON line and one monitor event per metric, with the global step on the x-axis
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from minimind.diagnosis.run_files import METRICS_FILE
from minimind.durable import append_whole
from minimind.engine.monitor import Outage, RunMonitor
from minimind.training.console import Console
from minimind.training.events import Evaluated, Listener, Log, Sampled, Saved, Step


class MetricsFile(Listener):
    """Writes metrics; only rank 0's does.

    Args:
        folder: the run's folder.
        monitor: the engine's monitor.
        epoch_of: global step -> epochs done.
        console: says when metrics could not be written.
        enabled: whether this rank writes.
    """

    name = "metrics_file"

    def __init__(
        self, *, folder: Path, monitor: RunMonitor, epoch_of: Callable[[int], float], console: Console, enabled: bool
    ) -> None:
        self._path, self._monitor, self._epoch_of = folder / METRICS_FILE, monitor, epoch_of
        self._console, self._enabled = console, enabled
        self._outage = Outage(METRICS_FILE)

    def on_step(self, event: Step) -> None:
        # The engine's own events, of every step.
        self._say(self._monitor.news())

    def on_log(self, event: Log) -> None:
        self._write(event.step, event.metrics)

    def on_evaluated(self, event: Evaluated) -> None:
        self._write(event.step, event.metrics)

    def on_sampled(self, event: Sampled) -> None:
        self._write(event.step, event.metrics)

    def on_saved(self, event: Saved) -> None:
        metrics = {**event.metrics, **({"save_failed": 1.0} if event.failures else {})}
        if metrics:
            self._write(event.step, metrics)

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        if not self._enabled:
            return
        # Six digits of an epoch tell apart the steps of a million-step run.
        entry = {"step": step, "epoch": round(self._epoch_of(step), 6), **metrics}
        line = f"{json.dumps(entry)}\n".encode()
        self._say(self._outage.attempt(lambda: append_whole(self._path, line)))
        if self._monitor.enabled:
            self._monitor.write_events([(name, value, step) for name, value in metrics.items()])
            self._say(self._monitor.news())

    def _say(self, news: Sequence[str]) -> None:
        for message in news:
            self._console.say(message)

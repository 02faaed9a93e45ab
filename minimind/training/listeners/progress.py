"""Progress on the console: the progress line, logged metrics, evaluations, samples."""

from __future__ import annotations

from collections.abc import Callable

from minimind.training.console import Console
from minimind.training.events import End, Evaluated, Listener, Log, Sampled, Start, Step
from minimind.training.jobs.job import Job


class Progress(Listener):
    """Shows a run's progress.

    Args:
        console: where it is shown.
        epoch_of: global step -> epochs done.
        job: says which metrics are shown.
    """

    name = "progress"

    def __init__(self, *, console: Console, epoch_of: Callable[[int], float], job: Job) -> None:
        self._console, self._epoch_of, self._job = console, epoch_of, job

    def on_start(self, event: Start) -> None:
        self._console.start(event.step, event.total_steps)

    def on_step(self, event: Step) -> None:
        self._console.advance(event.step)

    def on_log(self, event: Log) -> None:
        metrics = event.metrics
        columns = (f"{column.label} {metrics[column.metric]:{column.format}}" for column in self._job.columns)
        speed = f"{metrics['tokens_per_second']:,.0f} tok/s"
        epoch = f"epoch {self._epoch_of(event.step):.2f}"
        self._console.log(event.step, (epoch, f"loss {metrics['loss']:.4f}", *columns, speed))

    def on_evaluated(self, event: Evaluated) -> None:
        metrics = {name.removeprefix(event.prefix): value for name, value in event.metrics.items()}
        columns = (f"{column.label} {metrics[column.metric]:{column.eval_format}}" for column in self._job.columns)
        values = ", ".join((f"loss {metrics['loss']:.4f}", *columns))
        of = f" of {event.name}" if event.name else ""
        what = self._job.examples or self._job.item
        self._console.say(f"evaluation{of} at step {event.step}: {values} ({event.items} held-out {what})")

    def on_sampled(self, event: Sampled) -> None:
        metrics = {name.rpartition("/")[2]: value for name, value in event.metrics.items()}
        shown = {"ended": "ended by itself", "empty": "empty", "language_switched": "in another language"}
        shares = "".join(f", {metrics[name]:.0%} {label}" for name, label in shown.items() if name in metrics)
        repeats = f", {1 - metrics['distinct_3']:.0%} repeated 3-grams" if "distinct_3" in metrics else ""
        self._console.say(
            f"samples at step {event.step}: {len(event.samples)} answers of {metrics['length']:.1f} tokens"
            f"{shares}{repeats}"
        )

    def on_end(self, event: End) -> None:
        self._console.stop()

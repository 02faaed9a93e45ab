"""Saving: a checkpoint to resume from, and the weights to use.

Step (every interval, last), End (stopped or ended early) -> Save -> checkpoint, exported weights -> Saved
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from minimind.checkpoints.store import Checkpoints
from minimind.data.sampler import Sampler
from minimind.engine.moving_reference import MovingReference
from minimind.engine.policy import Policy
from minimind.errors import CheckpointError, TrainingError, WeightsError
from minimind.ranks.collectives import from_main
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.console import Console
from minimind.training.events import End, Events, Listener, Save, Saved, Start, Step
from minimind.training.metrics import StepMetrics


class Saving(Listener):
    """Writes checkpoints and weights. A full disk is reported, and training continues, except at the last save.

    Args:
        checkpoints: writes checkpoints; None where states swap to NVMe, because such a run cannot be resumed.
        export: writes the weights and returns the metrics of `Saved`; all ranks call it.
        folder: the run's folder, for messages.
        interval: global steps between saves; 0: only at the end.
        policy: the model that is saved.
        stream: its place is saved with the checkpoint.
        steps: unlogged training metrics are saved too; the clock stops during a save.
        moving: a reference that follows the policy; saved with it.
        events: the listeners' states are saved; `Saved` is raised.
    """

    name = "saving"

    def __init__(
        self,
        *,
        checkpoints: Checkpoints | None,
        export: Callable[[], Mapping[str, float]],
        folder: Path,
        interval: int,
        policy: Policy,
        stream: Sampler,
        steps: StepMetrics,
        events: Events,
        console: Console,
        world: World,
        watch: Watch,
        moving: MovingReference | None = None,
    ) -> None:
        self._moving = moving
        self._checkpoints, self._export, self._folder, self._interval = checkpoints, export, folder, interval
        self._policy, self._stream, self._steps, self._events = policy, stream, steps, events
        self._console, self._world, self._watch = console, world, watch
        # The global step after which checkpoint and weights, or the checkpoint alone, are on the disk.
        self._saved = self._resumed = -1

    def on_start(self, event: Start) -> None:
        self._resumed = event.step if event.step else -1
        if event.step == event.total_steps:
            # The interrupted run may have ended between its last checkpoint and its weights.
            self._write_weights()

    def on_step(self, event: Step) -> None:
        if event.stopping:
            return  # saved by on_end, without the weights
        if event.last or (self._interval and event.step % self._interval == 0):
            self._steps.pause()
            self.save(event.step, last=event.last)
            self._steps.resume()

    def on_end(self, event: End) -> None:
        if event.finished:
            if event.reason:
                self._end_early(event.step)
            return
        self._steps.pause()
        # Time may be short after a signal: only what is needed to resume is written.
        self.save(event.step, last=True, weights=self._checkpoints is None)
        stopped = f"{event.reason}: stopped after step {event.step}"
        if self._checkpoints is None:
            raise TrainingError(
                f"{stopped}. States that swap to NVMe are not saved, so the run cannot be resumed: start anew. The "
                f"weights after this step are in {self._folder}.",
                agreed=True,
            )
        self._console.say(f"{stopped}. A checkpoint is saved; resume with --from_resume 1")

    def _end_early(self, step: int) -> None:
        """Save after a last step that was not known to be the last before."""
        if step == self._resumed:
            self._write_weights()
        elif step != self._saved:
            self._steps.pause()
            self.save(step, last=True)

    def save(self, step: int, *, last: bool, weights: bool = True) -> None:
        """Raise `Save`, write a checkpoint and the weights, and raise `Saved`.

        Raises:
            CheckpointError: on all ranks, if it was the last save and a file could not be written.
        """
        self._watch.enter("saving")
        self._events.emit(Save(step=step))
        # The weights are tried even if the checkpoint failed: they are smaller and may still fit.
        failures: list[str] = []
        checkpoint: Path | None = None
        metrics: Mapping[str, float] = {}
        try:
            checkpoint = self._write_checkpoint(step)
        except CheckpointError as error:  # raised on all ranks alike
            failures.append(str(error))
        if weights:
            try:
                metrics = self._write_weights()
            except WeightsError as error:  # raised on all ranks alike
                failures.append(str(error))
        if failures:
            self._report(step, failures, last=last)
        else:
            self._saved = step
            self._console.say(f"saved step {step} under {self._folder}")
        self._events.emit(Saved(step=step, checkpoint=checkpoint, failures=failures, metrics=metrics))

    def _write_checkpoint(self, step: int) -> Path | None:
        if self._checkpoints is None:
            return None
        # `unlogged` is a collective; all ranks save at the same steps, so all of them call it.
        return self._checkpoints.save(
            self._policy,
            step,
            self._stream.position_after(step),
            self._steps.unlogged(),
            listeners=self._events.states(),
            moving=self._moving,
        )

    def _write_weights(self) -> Mapping[str, float]:
        self._watch.enter("exporting")
        return self._export()

    def _report(self, step: int, failures: list[str], *, last: bool) -> None:
        """Say what could not be written; after the last save there is no next try, so raise it."""
        newest = from_main(self._world, self._checkpoints.newest) if self._checkpoints is not None else None
        whole = f"The newest complete checkpoint is {newest}." if newest else "There is no complete checkpoint."
        message = f"NOT SAVED: step {step}: {'; '.join(failures)}. {whole}"
        if last:
            remedy = "--from_resume 1 repeats the lost steps" if self._checkpoints is not None else "start anew"
            raise CheckpointError(f"{message} Free disk space; then {remedy}.", agreed=True)
        self._console.say(f"{message} Training continues; the next save tries again.")

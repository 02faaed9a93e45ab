"""Saving: when files are written, what a failure costs, and what a run without checkpoints promises."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minimind.errors import CheckpointError, TrainingError, WeightsError
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.events import End, Events, Listener, Saved, Start, Step
from minimind.training.listeners.saving import Saving

pytestmark = pytest.mark.usefixtures("one_rank")

MOVED = {"moved/float16": 0.5}


class Recorder(Listener):
    name = "recorder"

    def __init__(self):
        self.saved = []

    def on_saved(self, event):
        self.saved.append(event)

    def state(self):
        return {"saved": len(self.saved)}


class Checkpoints:
    """Keeps what it is given; fails with `error` if there is one."""

    def __init__(self):
        self.error, self.saves = None, []

    def save(self, policy, step, stream, unlogged, listeners, moving):
        assert moving == "moving"
        if self.error:
            raise CheckpointError(self.error)
        self.saves.append((step, stream, unlogged, listeners))
        return Path(f"step{step}")

    def newest(self):
        return f"step{self.saves[-1][0]}" if self.saves else None


@pytest.fixture
def made(tmp_path):
    """A saving listener with all that it uses; `checkpoints` can be None."""

    def make(checkpoints, interval=2):
        printed, exports, clock, recorder, events = [], [], [], Recorder(), Events()
        saving = Saving(
            checkpoints=checkpoints,
            export=lambda: exports.append("weights") or MOVED,
            folder=tmp_path,
            interval=interval,
            policy=None,
            moving="moving",
            stream=SimpleNamespace(position_after=lambda step: {"at": step}),
            steps=SimpleNamespace(
                pause=lambda: clock.append("pause"), resume=lambda: clock.append("resume"), unlogged=lambda: {"n": 1}
            ),
            events=events,
            console=SimpleNamespace(say=printed.append),
            world=World(rank=0, local_rank=0, size=1, device=torch.device("cpu")),
            watch=Watch(),
        )
        events.add(saving, recorder)
        return SimpleNamespace(
            saving=saving, printed=printed, exports=exports, clock=clock, saved=recorder.saved, events=events
        )

    return make


def test_saves_every_interval_and_at_the_end(made):
    checkpoints = Checkpoints()
    run = made(checkpoints)
    for step in range(1, 6):
        run.events.emit(Step(step=step, last=step == 5))
    assert [save[0] for save in checkpoints.saves] == [2, 4, 5]
    assert checkpoints.saves[0] == (2, {"at": 2}, {"n": 1}, {"recorder": {"saved": 0}})
    assert checkpoints.saves[1][3] == {"recorder": {"saved": 1}}
    assert run.exports == ["weights"] * 3
    assert run.saved[0] == Saved(step=2, checkpoint=Path("step2"), failures=[], metrics=MOVED)
    assert run.clock == ["pause", "resume"] * 3


def test_what_must_be_on_the_disk_first_is_told_of_a_save(made):
    class First(Listener):
        name = "first"

        def on_save(self, event):
            told.append((event.step, len(checkpoints.saves)))

    told, checkpoints = [], Checkpoints()
    run = made(checkpoints)
    run.events.add(First())
    for step in (2, 4):
        run.events.emit(Step(step=step, last=False))
    assert told == [(2, 0), (4, 1)]


def test_interval_0_saves_only_at_the_end(made):
    checkpoints = Checkpoints()
    run = made(checkpoints, interval=0)
    for step in (1, 2, 3):
        run.events.emit(Step(step=step, last=step == 3))
    assert [save[0] for save in checkpoints.saves] == [3]


def test_a_stop_saves_once_and_without_the_weights(made):
    checkpoints = Checkpoints()
    run = made(checkpoints)
    run.events.emit(Step(step=2, last=False, stopping=True))
    run.events.emit(End(step=2, finished=False, reason="SIGTERM"))
    assert [save[0] for save in checkpoints.saves] == [2]
    assert run.exports == []
    assert run.printed[-1] == "SIGTERM: stopped after step 2. A checkpoint is saved; resume with --from_resume 1"


def test_a_finished_run_is_not_saved_again(made):
    checkpoints = Checkpoints()
    run = made(checkpoints)
    run.events.emit(End(step=5, finished=True))
    assert checkpoints.saves == []


def test_a_run_that_a_listener_ended_is_saved_once(made):
    checkpoints = Checkpoints()
    run = made(checkpoints)
    run.events.emit(Step(step=3, last=False))
    run.events.emit(End(step=3, finished=True, reason="enough"))
    assert ([save[0] for save in checkpoints.saves], run.exports) == ([3], ["weights"])
    run = made(checkpoints := Checkpoints())
    run.events.emit(Step(step=4, last=False))
    run.events.emit(End(step=4, finished=True, reason="enough"))
    assert ([save[0] for save in checkpoints.saves], run.exports) == ([4], ["weights"])


def test_a_resumed_run_that_was_ended_writes_its_weights_alone(made):
    run = made(checkpoints := Checkpoints())
    run.events.emit(Start(step=3, total_steps=5))
    run.events.emit(End(step=3, finished=True, reason="enough"))
    assert (checkpoints.saves, run.exports) == ([], ["weights"])


def test_weights_lost_after_the_last_checkpoint_are_written_on_resume(made):
    run = made(Checkpoints())
    run.events.emit(Start(step=3, total_steps=5))
    assert run.exports == []
    run.events.emit(Start(step=5, total_steps=5))
    assert run.exports == ["weights"]


def test_a_failure_is_reported_and_training_continues(made):
    checkpoints = Checkpoints()
    run = made(checkpoints)
    run.events.emit(Step(step=2, last=False))
    checkpoints.error = "the disk is full"
    run.events.emit(Step(step=4, last=False))
    assert run.exports == ["weights"] * 2  # the weights are tried even if the checkpoint failed
    assert run.printed[-1] == (
        "NOT SAVED: step 4: the disk is full. The newest complete checkpoint is step2. Training continues; the next "
        "save tries again."
    )
    assert run.saved[-1] == Saved(step=4, checkpoint=None, failures=["the disk is full"], metrics=MOVED)


def test_a_failure_of_the_last_save_is_an_error(made):
    checkpoints = Checkpoints()
    run = made(checkpoints)
    checkpoints.error = "the disk is full"
    with pytest.raises(
        CheckpointError, match=r"no complete checkpoint\. Free disk space; then --from_resume 1 rep"
    ) as caught:
        run.events.emit(Step(step=5, last=True))
    assert caught.value.agreed


def test_without_checkpoints_a_stop_leaves_the_weights_and_says_that_the_run_is_over(made, tmp_path):
    run = made(None)
    with pytest.raises(TrainingError, match=r"SIGUSR1: stopped after step 3\. .* cannot be resumed") as caught:
        run.events.emit(End(step=3, finished=False, reason="SIGUSR1"))
    assert caught.value.agreed
    assert run.exports == ["weights"]
    assert not any("--from_resume" in line for line in run.printed)


def test_without_checkpoints_weights_that_cannot_be_written_at_the_end_are_an_error(made):
    run = made(None)
    run.events.emit(Step(step=4, last=False))
    assert run.exports == ["weights"]

    def fail():
        raise WeightsError("the disk is full")

    run.saving._export = fail
    with pytest.raises(CheckpointError, match=r"the disk is full.*no complete checkpoint\..*then start anew"):
        run.events.emit(Step(step=5, last=True))

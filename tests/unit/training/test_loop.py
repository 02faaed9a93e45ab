"""The loop: which events it raises, when it logs, how it stops, and what it seeds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from minimind.errors import TrainingError
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training import loop
from minimind.training.events import End, Events, Halt, Listener, Log, Start, Step

pytestmark = pytest.mark.usefixtures("one_rank")


class Recorder(Listener):
    name = "recorder"

    def __init__(self):
        self.heard = []

    def _hear(self, event):
        self.heard.append(event)

    on_start = on_step = on_log = on_end = _hear


@pytest.fixture
def run(monkeypatch):
    """A run of five steps; `seeds` has a random number drawn in each step."""
    watch = Watch()
    watch.timeout = 60.0
    seeds: list[int] = []
    detailed: list[bool] = []

    def step(*_, distributions, met):
        seeds.append(int(torch.randint(10**9, ())))
        detailed.append(distributions)
        if met is not None:
            met("batch", "outcome")

    monkeypatch.setattr(loop, "train_step", step)
    recorder, events = Recorder(), Events()
    events.add(recorder)
    clock, phases = [], []
    metrics = SimpleNamespace(
        sums=None,
        resume=lambda: clock.append("resume"),
        pause=lambda: clock.append("pause"),
        reset=lambda: clock.append("reset"),
        reduce=lambda: {"loss": 0.5},
        add_norm=lambda norm: None,
    )
    return SimpleNamespace(
        world=World(rank=0, local_rank=0, size=1, device=torch.device("cpu")),
        watch=watch,
        policy=SimpleNamespace(train=lambda: None, learning_rate=0.1, grad_norm=torch.tensor(1.0)),
        job=SimpleNamespace(token_metrics=("entropy",)),
        batches=lambda start: iter([[]] * (5 - start)),
        total_steps=5,
        log_interval=2,
        seed=42,
        metrics=metrics,
        speed=SimpleNamespace(
            waiting=lambda batches: batches,
            begin=lambda batches: phases.append("begin"),
            end=lambda: phases.append("end"),
        ),
        phases=phases,
        events=events,
        nonfinite=SimpleNamespace(error_at=lambda step, batches, error: TrainingError(f"step {step}: {error}")),
        halt=Halt(),
        met=None,
        heard=recorder.heard,
        seeds=seeds,
        detailed=detailed,
        clock=clock,
    )


def test_events_of_a_whole_run(run):
    assert loop.train(run, 0)
    log = {"loss": 0.5, "learning_rate": 0.1}
    assert run.heard == [
        Start(step=0, total_steps=5),
        Log(step=1, metrics=log),  # the first step is always logged
        Step(step=1, last=False),
        Log(step=2, metrics=log),
        Step(step=2, last=False),
        Step(step=3, last=False),
        Log(step=4, metrics=log),
        Step(step=4, last=False),
        Log(step=5, metrics=log),  # the last one too
        Step(step=5, last=True),
        End(step=5, finished=True),
    ]
    assert run.clock == ["resume", *["pause", "reset"] * 4]
    assert run.phases == ["begin", "end"] * 5
    # What is computed for logged steps only is computed in these.
    assert run.detailed == [True, True, False, True, True]


def test_what_was_met_is_told_with_its_step(run):
    heard = []
    run.met = lambda *told: heard.append(told)
    loop.train(run, 3)
    assert heard == [(4, "batch", "outcome"), (5, "batch", "outcome")]


def test_a_resumed_run_begins_after_its_checkpoint(run):
    assert loop.train(run, 3)
    assert run.heard[0] == Start(step=3, total_steps=5)
    assert [event.step for event in run.heard if isinstance(event, Step)] == [4, 5]


def test_a_signal_stops_after_the_step(run):
    run.watch.stop_reason = "SIGUSR1"
    assert not loop.train(run, 2)
    assert run.heard[-2:] == [
        Step(step=3, last=False, stopping=True),
        End(step=3, finished=False, reason="SIGUSR1"),
    ]


def test_a_signal_in_the_last_step_does_not_stop_the_run(run):
    run.watch.stop_reason = "SIGUSR1"
    assert loop.train(run, 4)
    assert run.heard[-1] == End(step=5, finished=True)


class Ender(Listener):
    """Ends the run after one step."""

    name = "ender"

    def __init__(self, halt, step):
        self.halt, self.step = halt, step

    def on_start(self, event):
        if event.step == self.step:
            self.halt.ask(event.step, "enough")

    def on_step(self, event):
        if event.step == self.step:
            self.halt.ask(event.step, "enough")


def test_a_listener_ends_the_run_as_finished(run):
    run.events.add(Ender(run.halt, 3))
    assert loop.train(run, 0)
    assert run.heard[-2:] == [Step(step=3, last=False), End(step=3, finished=True, reason="enough")]


def test_a_run_that_was_ended_takes_no_step_when_it_is_resumed(run):
    run.events.add(Ender(run.halt, 3))
    assert loop.train(run, 3)
    assert run.heard == [Start(step=3, total_steps=5), End(step=3, finished=True, reason="enough")]
    assert run.seeds == []


def test_a_listener_that_asks_at_the_last_step_changes_nothing(run):
    run.events.add(Ender(run.halt, 5))
    assert loop.train(run, 3)
    assert run.heard[-1] == End(step=5, finished=True)


def test_a_resumed_run_draws_the_same_random_numbers(run):
    loop.train(run, 0)
    whole = list(run.seeds)
    run.seeds.clear()
    torch.manual_seed(0)
    loop.train(run, 2)
    assert run.seeds == whole[2:]
    assert len(set(whole)) == 5


def test_a_step_that_is_not_finite_is_reported_with_its_number(run, monkeypatch):
    def fail(*_, distributions, met):
        raise TrainingError("the gradient is not finite")

    monkeypatch.setattr(loop, "train_step", fail)
    with pytest.raises(TrainingError, match="step 4: the gradient is not finite"):
        loop.train(run, 3)

"""Evaluation: when held-out pairs are evaluated, and that each counts once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.events import End, Evaluated, Events, Listener, Start, Step
from minimind.training.jobs.job import BatchOutcome
from minimind.training.listeners import evaluation
from minimind.training.listeners.evaluation import Evaluation

pytestmark = pytest.mark.usefixtures("one_rank")
TABLE = [1.0, 2.0, 6.0]


class Recorder(Listener):
    name = "recorder"

    def __init__(self):
        self.heard = []

    def on_evaluated(self, event):
        self.heard.append(event)


class Batch(SimpleNamespace):
    def to_device(self, device):
        return self


@pytest.fixture
def made():
    """A run over three held-out pairs, whose losses are the table's values."""

    def make(interval, sets=None, keeps=()):
        world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
        events, recorder, calls = Events(), Recorder(), []
        policy = SimpleNamespace(
            world=world,
            eval=lambda: calls.append("eval"),
            train=lambda: calls.append("train"),
            score=lambda batch, distributions: (batch.values, torch.zeros(())),
        )
        job = SimpleNamespace(
            name="dpo",
            item="pairs",
            metrics=(),
            metric_parts={},
            derived=lambda means: {},
            token_metrics=(),
            whole_batch=False,
            trained=lambda batch: batch,
            targets=lambda batches: [None],
            outcome=lambda batch, log_probs, target: BatchOutcome(losses=log_probs, metrics={}),
            item_weights=lambda batch, weights: weights,
        )
        listener = Evaluation(
            table=TABLE,
            sets=sets or {"": range(3)},
            layout=lambda values: Batch(values=torch.tensor(values), row_tokens=4),
            batch_size=2,
            interval=interval,
            job=job,
            policy=policy,
            world=world,
            watch=Watch(),
            steps=SimpleNamespace(pause=lambda: calls.append("pause"), resume=lambda: calls.append("resume")),
            emit=events.emit,
            keeps=keeps,
        )
        events.add(listener, recorder)
        return SimpleNamespace(events=events, heard=recorder.heard, calls=calls)

    return make


def test_the_metrics_are_means_over_all_held_out_pairs(made):
    run = made(interval=0)
    run.events.emit(Start(step=0, total_steps=4))
    (event,) = run.heard
    assert isinstance(event, Evaluated)
    assert (event.step, event.items) == (0, 3)
    assert event.metrics["eval/loss"] == 3.0
    assert run.calls == ["eval", "train"]


def test_asked_values_of_single_pairs_are_kept_in_their_order(made):
    run = made(0, {"zh": range(1), "en": range(1, 3)}, keeps=("loss",))
    run.events.emit(Start(step=0, total_steps=4))
    assert [(event.name, event.kept["loss"].tolist(), event.pairs) for event in run.heard] == [
        ("zh", [1.0], None),
        ("en", [2.0, 6.0], None),
    ]


def test_each_set_is_evaluated_by_itself(made):
    run = made(0, {"zh": range(1), "en": range(1, 3)})
    run.events.emit(Start(step=0, total_steps=4))
    assert [(event.name, event.items, event.metrics[f"{event.prefix}loss"]) for event in run.heard] == [
        ("zh", 1, 1.0),
        ("en", 2, 4.0),
    ]
    assert "eval/en/loss" in run.heard[1].metrics
    assert run.calls == ["eval", "train"] * 2


@pytest.mark.parametrize(("interval", "steps"), [(0, [4]), (2, [2, 4]), (3, [3, 4])])
def test_every_interval_and_at_the_end(made, interval, steps):
    run = made(interval)
    for step in (1, 2, 3, 4):
        run.events.emit(Step(step=step, last=step == 4))
    assert [event.step for event in run.heard] == steps
    assert run.calls == ["pause", "eval", "train", "resume"] * len(steps)


def test_a_run_that_a_listener_ended_is_evaluated_there_once(made):
    run = made(interval=2)
    run.events.emit(Start(step=0, total_steps=9))
    for step in (1, 2, 3):
        run.events.emit(Step(step=step, last=False))
    run.events.emit(End(step=3, finished=True, reason="enough"))
    assert [event.step for event in run.heard] == [0, 2, 3]
    run.events.emit(End(step=3, finished=True, reason="enough"))
    run.events.emit(End(step=9, finished=True))
    run.events.emit(End(step=4, finished=False, reason="SIGTERM"))
    assert [event.step for event in run.heard] == [0, 2, 3]


def test_a_resumed_run_does_not_repeat_the_evaluation_at_the_start(made):
    run = made(interval=0)
    run.events.emit(Start(step=2, total_steps=4))
    assert run.heard == []


def test_a_stop_does_not_wait_for_an_evaluation(made):
    run = made(interval=2)
    run.events.emit(Step(step=2, last=False, stopping=True))
    assert run.heard == []


def test_the_step_function_is_the_one_of_training():
    from minimind.training.step import eval_step

    assert evaluation.eval_step is eval_step

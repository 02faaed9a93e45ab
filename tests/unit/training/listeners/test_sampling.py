"""Sampling: when, which prompts each rank gets, what is raised, and that a stop is honoured between batches."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from minimind.generation.batch import Answer
from minimind.generation.decoding import Decoding
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.events import End, Events, Listener, Start, Step
from minimind.training.listeners import sampling
from minimind.training.listeners.sampling import SampleSchedule, Sampling
from minimind.training.samples import SamplePrompt


class Recorder(Listener):
    name = "recorder"

    def __init__(self):
        self.heard = []

    def on_sampled(self, event):
        self.heard.append(event)


@pytest.fixture
def made(monkeypatch):
    def make(interval=0, eval_interval=0, *, size=1, rank=0, number=3, batch_size=2, others=()):
        batches, calls, watch = [], [], Watch()

        def generate(model, tokenizer, prompts, decoding, *, seeds, on_token, synced):
            batches.append(([ids[0] for ids in prompts], list(seeds), synced))
            on_token()
            return [Answer(ids=[ids[0], 7, 2], text=f"answer {ids[0]} ", ended=True) for ids in prompts]

        answers_of_others = iter(others)

        def gather(world, value):
            return [value] if size == 1 else [value, next(answers_of_others)]

        monkeypatch.setattr(sampling, "generate", generate)
        monkeypatch.setattr(sampling, "with_model", lambda policy, compute, keeps_weights: compute("model"))
        monkeypatch.setattr(sampling, "gather", gather)
        events, recorder = Events(), Recorder()
        world = World(rank=rank, local_rank=rank, size=size, device=torch.device("cpu"))
        listener = Sampling(
            prompts=[
                SamplePrompt(ids=(10 + index,), text=f"prompt {index}", expected="Yes, it is.", place=f"line {index}")
                for index in range(number)
            ],
            tokenizer=None,
            decoding=Decoding(),
            seed=100,
            batch_size=batch_size,
            schedule=SampleSchedule(interval=interval, eval_interval=eval_interval),
            policy=SimpleNamespace(stage=3, world=world),
            keeps_weights=None,
            start=lambda: ["before"] * number,
            world=world,
            watch=watch,
            steps=SimpleNamespace(pause=lambda: calls.append("pause"), resume=lambda: calls.append("resume")),
            emit=events.emit,
        )
        events.add(listener, recorder)
        return SimpleNamespace(events=events, heard=recorder.heard, calls=calls, batches=batches, watch=watch)

    return make


def test_answers_before_the_first_step_stay_beside_those_after_it(made):
    run = made()
    run.events.emit(Start(step=0, total_steps=4))
    (event,) = run.heard
    assert run.batches == [([10, 11], [100, 101], False), ([12], [102], False)]
    assert run.calls == []
    assert [(one.start, one.answer, one.ids, one.ended) for one in event.samples][:1] == [
        ("answer 10", "answer 10", (10, 7, 2), True)
    ]
    assert event.metrics["samples/length"] == 2.0
    assert event.metrics["samples/language_switched"] == 0.0
    run.events.emit(Step(step=4, last=True))
    assert [one.start for one in run.heard[1].samples] == ["answer 10", "answer 11", "answer 12"]
    assert run.calls == ["pause", "resume"]


@pytest.mark.parametrize(
    ("interval", "eval_interval", "steps"), [(0, 0, [6]), (2, 0, [2, 4, 6]), (0, 4, [4, 6]), (2, 3, [2, 3, 4, 6])]
)
def test_samples_come_every_interval_at_evaluations_and_at_the_end(made, interval, eval_interval, steps):
    run = made(interval, eval_interval)
    for step in range(1, 7):
        run.events.emit(Step(step=step, last=step == 6))
    assert [event.step for event in run.heard] == steps


def test_a_resumed_run_reads_the_answers_before_the_first_step(made):
    run = made(interval=3)
    run.events.emit(Start(step=2, total_steps=4))
    assert run.heard == []
    run.events.emit(Step(step=3, last=False))
    assert [one.start for one in run.heard[0].samples] == ["before"] * 3


def test_a_run_that_a_listener_ended_has_samples_of_its_last_step_once(made):
    run = made(interval=2)
    run.events.emit(Start(step=0, total_steps=9))
    run.events.emit(Step(step=3, last=False))
    run.events.emit(End(step=3, finished=True, reason="enough"))
    run.events.emit(End(step=3, finished=True, reason="enough"))
    run.events.emit(End(step=4, finished=False, reason="SIGTERM"))
    assert [event.step for event in run.heard] == [0, 3]


def test_a_stop_does_not_wait_for_samples(made):
    run = made(interval=1)
    run.events.emit(Step(step=1, last=False, stopping=True))
    assert run.batches == []
    run.watch.stop_reason = "SIGTERM"
    run.events.emit(Step(step=2, last=False))
    assert (run.batches, run.heard) == ([], [])
    assert run.calls == ["pause", "resume"]


def test_a_stop_on_another_rank_ends_it_between_batches(made):
    run = made(size=2, batch_size=1, others=[False, True])
    run.events.emit(Start(step=0, total_steps=4))
    assert len(run.batches) == 1
    assert run.heard == []


def test_ranks_take_equally_many_prompts(made):
    others = [False, [(0, Answer(ids=[2], text="of rank 0", ended=True)), (2, Answer(ids=[2], text="c", ended=True))]]
    run = made(size=2, rank=1, others=others)
    run.events.emit(Start(step=0, total_steps=4))
    # Prompts 0 and 2 are rank 0's. Rank 1 answers prompt 0 too: under ZeRO-3 both take as many batches.
    assert run.batches == [([11, 10], [101, 100], True)]
    assert [one.answer for one in run.heard[0].samples] == ["of rank 0", "answer 11", "c"]

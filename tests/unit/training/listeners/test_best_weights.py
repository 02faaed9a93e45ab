"""Best weights: when they are written, what a resumed run knows of them, and when a run is ended."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from minimind.errors import WeightsError
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.best import Criterion
from minimind.training.events import End, Evaluated, Events, Halt, Start
from minimind.training.listeners.best_weights import BestWeights

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture
def made(tmp_path):
    def make(patience=None, metric="eval/loss", data="key", prefix="eval/"):
        printed, written, halt, events = [], [], Halt(), Events()

        def export(record):
            if run.error:
                raise WeightsError(run.error)
            (tmp_path / "best").mkdir(exist_ok=True)
            (tmp_path / "best" / "best.json").write_text(json.dumps(record))
            written.append((record["step"], record["value"]))

        listener = BestWeights(
            criterion=Criterion(metric=metric, larger=False),
            prefix=prefix,
            patience=patience,
            export=export,
            folder=tmp_path / "best",
            data=data,
            halt=halt,
            console=SimpleNamespace(say=printed.append),
            world=World(rank=0, local_rank=0, size=1, device=torch.device("cpu")),
            watch=Watch(),
        )
        events.add(listener)
        run = SimpleNamespace(listener=listener, printed=printed, written=written, halt=halt, events=events, error="")
        return run

    return make


def evaluate(run, *values, start=0):
    for step, value in enumerate(values, start=start):
        run.events.emit(Evaluated(step=step, metrics={"eval/loss": value}, items=3))


def test_the_weights_of_each_new_best_are_written_but_not_those_of_the_start(made):
    run = made()
    evaluate(run, 0.7, 0.8, 0.6, 0.6, 0.5)
    assert run.written == [(2, 0.6), (4, 0.5)]
    run.events.emit(End(step=4, finished=True))
    assert run.printed[-1].startswith("best weights: eval/loss 0.5 at step 4, in ")


def test_start_weights_that_nothing_beats_are_named(made):
    run = made()
    evaluate(run, 0.7, 0.8)
    run.events.emit(End(step=1, finished=True))
    assert run.written == []
    assert run.printed == ["best weights: the start weights, eval/loss 0.7 at step 0; no evaluation was better"]


def test_a_metric_that_an_evaluation_lacks_is_no_progress(made):
    run = made(patience=2, metric="eval/rewards/chosen")
    evaluate(run, 0.7, 0.6)
    assert run.halt.step == 1
    run.events.emit(End(step=1, finished=True))
    assert run.printed == ["best weights: none, eval/rewards/chosen was never a number"]


def test_other_sets_of_held_out_data_are_no_evaluations(made):
    """They lack the metric, and would use up the patience."""
    run = made(patience=2, metric="eval/zh/loss", prefix="eval/zh/")
    for step, value in enumerate((0.7, 0.6, 0.65, 0.66)):
        assert run.halt.step is None
        for name, loss in (("zh", value), ("en", 0.1)):
            run.events.emit(Evaluated(step=step, metrics={f"eval/{name}/loss": loss}, items=3, name=name))
    assert run.written == [(1, 0.6)]
    assert run.halt.step == 3
    assert run.halt.reason.startswith("2 evaluations without a better one")


def test_patience_counts_evaluations_since_the_best(made):
    run = made(patience=2)
    evaluate(run, 0.7, 0.6, 0.65, 0.5, 0.55)
    assert run.halt.step is None
    evaluate(run, 0.51, start=5)
    assert (run.halt.step, run.halt.reason) == (
        5,
        "2 evaluations without a better one (--early_stop); the best is eval/loss 0.5 at step 3",
    )


def test_a_resumed_run_keeps_best_and_patience(made):
    run = made(patience=3)
    evaluate(run, 0.7, 0.6, 0.65)
    state = json.loads(json.dumps(run.events.states()))
    again = made(patience=3)
    again.events.restore(state)
    again.events.emit(Start(step=2, total_steps=9))
    evaluate(again, 0.62, start=3)
    assert (again.written, again.halt.step) == ([], None)
    evaluate(again, 0.61, start=4)
    assert again.halt.step == 4
    # Resumed with the same patience, it has nothing to do; with more, it goes on.
    state = json.loads(json.dumps(again.events.states()))
    for patience, step in ((3, 4), (4, None), (None, None)):
        third = made(patience=patience)
        third.events.restore(state)
        third.events.emit(Start(step=4, total_steps=9))
        assert third.halt.step == step


def test_best_weights_that_are_gone_are_replaced_by_the_next_ones(made, tmp_path):
    run = made()
    evaluate(run, 0.7, 0.6)
    state = run.events.states()
    (tmp_path / "best" / "best.json").unlink()
    again = made()
    again.events.restore(state)
    again.events.emit(Start(step=1, total_steps=9))
    assert again.printed == [f"{tmp_path / 'best'} is not there: the next evaluation counts as the best so far"]
    evaluate(again, 0.65, start=2)
    assert again.written == [(2, 0.65)]


def test_another_metric_starts_anew(made):
    run = made()
    evaluate(run, 0.7, 0.6)
    again = made(metric="eval/nll")
    again.events.restore(run.events.states())
    assert again.printed == [
        "--save_best eval/nll: the checkpoint has the best eval/loss; the next evaluation counts as the best so far"
    ]
    assert again.listener._best.step is None


def test_values_on_other_held_out_data_are_not_compared(made):
    run = made()
    evaluate(run, 0.7, 0.6)
    again = made(data="other")
    again.events.restore(run.events.states())
    assert again.printed == [
        "--save_best: the checkpoint's best is of other held-out data; the next evaluation counts as the best so far"
    ]
    evaluate(again, 0.9, start=2)
    assert again.written == [(2, 0.9)]


def test_weights_that_cannot_be_written_are_tried_again(made):
    run = made()
    run.error = "the disk is full"
    evaluate(run, 0.7, 0.6)
    assert run.printed[-1] == "NOT SAVED: best weights, step 1: the disk is full. Training continues."
    run.error = ""
    evaluate(run, 0.65, start=2)
    assert run.written == [(2, 0.65)]

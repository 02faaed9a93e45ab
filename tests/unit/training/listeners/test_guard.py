"""The guard as a listener: each finding once, across a resume, and the end of a run that is asked to end."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minimind.diagnosis.pair_signals import HeldOut
from minimind.diagnosis.run_files import FINDINGS_FILE
from minimind.ranks.world import World
from minimind.training.events import Evaluated, Events, Halt, Listener, Log, Saved, Start
from minimind.training.findings import FindingsFile
from minimind.training.listeners import guard as module
from minimind.training.listeners.guard import Guard

pytestmark = pytest.mark.usefixtures("one_rank")
FORGETTING = (1.2, 1.3, 1.5, 1.6)


class Recorder(Listener):
    name = "recorder"

    def __init__(self):
        self.heard = []

    def on_found(self, event):
        self.heard.append(event)


@pytest.fixture
def made(tmp_path):
    def make(stops=False, data="key", state=None):
        printed, halt, events, recorder = [], Halt(), Events(), Recorder()
        world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
        console = SimpleNamespace(say=printed.append)
        facts = {"log_ratios": True, "logistic": True, "data": data}
        file = FindingsFile(tmp_path, enabled=True)
        listener = Guard(stops=stops, **facts, halt=halt, console=console, world=world, file=file, emit=events.emit)
        events.add(listener, recorder)
        if state is not None:
            events.restore(state)
        events.emit(Start(step=0 if state is None else 2, total_steps=100))
        return SimpleNamespace(
            listener=listener,
            printed=printed,
            halt=halt,
            events=events,
            heard=recorder.heard,
            file=tmp_path / FINDINGS_FILE,
        )

    return make


def evaluate(run, step, name="", pairs=None, **metrics):
    prefix = f"eval/{name}/" if name else "eval/"
    metrics = {f"{prefix}{metric}": value for metric, value in metrics.items()}
    run.events.emit(Evaluated(step=step, metrics=metrics, items=9, name=name, pairs=pairs))


def test_a_finding_is_one_line_once(made):
    run = made()
    for step, nll in enumerate(FORGETTING):
        evaluate(run, step, nll=nll)
    assert run.printed == [
        "GUARD: a token of held-out chosen answers costs 1.500 nats, 1.200 at step 0 (step 2): try --loss "
        "sigmoid:1,sft:0.2, a larger --beta or a lower --learning_rate"
    ]
    assert run.halt.step is None
    # Other listeners hear of it, and it is a line of a file.
    (found,) = run.heard
    assert (found.step, found.name, f"GUARD: {found.line}") == (2, "", run.printed[0])
    (line,) = run.file.read_text().splitlines()
    assert json.loads(line)["rule"] == "forgetting"


def test_what_is_said_of_the_run_is_not_said_again_of_each_set(made):
    run = made()
    for step in (1, 2, 3):
        run.events.emit(Log(step=step, metrics={"rewards/accuracies": 1.0, "loss": 1e-3}))
        evaluate(run, step, "zh", nll=1.2)
    assert [line[:30] for line in run.printed] == ["GUARD: training pairs are lear"]


def test_saved_weights_are_judged(made):
    run = made()
    run.events.emit(Saved(step=40, checkpoint=None))
    lost = {"moved/float32": 1.0, "moved/float16": 0.25}
    for step in (10, 50, 60):
        run.events.emit(Saved(step=step, checkpoint=None, metrics=lost))
    (line,) = run.printed
    assert line.startswith("GUARD: the written weights keep few of the changes of training: float16 25% of")
    assert "(step 50)" in line  # not in the first quarter of 100 steps


def test_a_finding_after_the_checkpoint_is_made_again_and_stands_once_in_the_file(made):
    run = made()
    evaluate(run, 1, nll=1.2)
    evaluate(run, 2, nll=1.5)
    state = json.loads(json.dumps(run.events.states()))
    for step in (2, 3):  # found after the checkpoint of step 2
        evaluate(run, step, "zh", nll=step)
    assert len(run.file.read_text().splitlines()) == 2
    again = made(state=state)
    assert [json.loads(line)["set"] for line in run.file.read_text().splitlines()] == [""]
    for step in (2, 3):
        evaluate(again, step, nll=1.5)
        evaluate(again, step, "zh", nll=step)
    assert [json.loads(line)["set"] for line in run.file.read_text().splitlines()] == ["", "zh"]
    assert len(again.printed) == 1


def test_each_set_has_its_own_curves(made):
    run = made()
    for step, nll in enumerate(FORGETTING):
        evaluate(run, step, "zh", nll=nll)
        evaluate(run, step, "en", nll=1.2)
        evaluate(run, step, "fr", nll=2 * nll)
    assert [line.partition(" a token")[0] for line in run.printed] == ["GUARD: zh:", "GUARD: fr:"]


def test_stop_ends_the_run_at_the_first_finding(made):
    run = made(stops=True)
    for step, nll in enumerate(FORGETTING[:2]):
        evaluate(run, step, nll=nll)
    assert run.halt.step is None
    evaluate(run, 2, nll=1.5)
    assert run.halt.step == 2
    assert run.halt.reason.startswith("--guard stop: a token of held-out chosen answers costs 1.500 nats")


def test_logged_steps_are_judged_too(made):
    run = made(stops=True)
    for step in (10, 20, 30):
        run.events.emit(Log(step=step, metrics={"rewards/accuracies": 1.0, "loss": 1e-3, "tokens_per_second": 1.0}))
    assert run.halt.step == 30
    assert run.printed[0].startswith("GUARD: training pairs are learnt: accuracy 1.00, loss 0.0010 (step 30)")


def test_a_resumed_run_goes_on_with_its_curves_and_does_not_repeat_itself(made):
    margins = -np.linspace(1, 2, 50)

    def pairs(factor):
        wrong = np.concatenate((factor * margins[:10], -margins[10:]))
        return HeldOut(chosen=wrong, rejected=0 * wrong, chosen_tokens=wrong + 9, rejected_tokens=0 * wrong + 9)

    run = made()
    for step, factor in ((1, 0.1), (2, 0.2)):
        evaluate(run, step, pairs=pairs(factor), **{"rewards/accuracies": 0.8})
    state = json.loads(json.dumps(run.events.states()))
    again = made()
    again.events.restore(state)
    evaluate(again, 3, pairs=pairs(0.3), **{"rewards/accuracies": 0.8})
    # The third evaluation in a row, two of them before the resume.
    assert [line[:60] for line in again.printed] == ["GUARD: 20% of held-out pairs are ranked wrongly, and more cl"]
    third = made(stops=True)
    third.events.restore(json.loads(json.dumps(again.events.states())))
    evaluate(third, 4, pairs=pairs(0.4), **{"rewards/accuracies": 0.8})
    assert (third.printed, third.halt.step) == ([], None)
    # Curves of other held-out data do not go on.
    other = made(data="other")
    other.events.restore(state)
    evaluate(other, 3, pairs=pairs(0.3), **{"rewards/accuracies": 0.8})
    assert other.printed == []


def test_the_state_stays_small(made, monkeypatch):
    monkeypatch.setattr(module, "_POINTS", 5)
    monkeypatch.setattr(module, "_FOLLOWED", 3)
    run = made()
    ones = np.ones(4)
    four = HeldOut(chosen=-ones, rejected=ones, chosen_tokens=ones, rejected_tokens=ones)
    for step in range(20):
        run.events.emit(Log(step=step, metrics={"loss": float("nan") if step == 17 else 0.5}))
        evaluate(run, step, pairs=four)
    state = run.events.states()["guard"]
    assert [row[0] for row in state["logs"]] == [0, 16, 17, 18, 19]
    assert state["logs"][2] == [17, {}]  # JSON has no NaN
    assert (len(state["evaluations"][""]), state["wrong"]) == (5, {})


def test_a_finding_about_an_earlier_evaluation_ends_the_run_now(made):
    run = made(stops=True)
    run.events.emit(Log(step=1, metrics={"loss": 0.7}))
    for step, loss in enumerate((0.7, 0.5, 0.6, 0.65), start=1):
        evaluate(run, step, loss=loss)
    assert run.halt.step is None
    run.events.emit(Log(step=6, metrics={"loss": 0.4}))
    assert "(step 4)" in run.printed[0]
    assert run.halt.step == 6

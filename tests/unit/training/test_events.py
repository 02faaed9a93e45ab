"""Events reach the listeners in order, and a listener's state passes through JSON."""

from __future__ import annotations

import json

import pytest

from minimind.training.events import End, Evaluated, Events, Listener, Log, Saved, Start, Step

ALL = (
    Start(step=0, total_steps=3),
    Step(step=1, last=False),
    Log(step=1, metrics={"loss": 0.5}),
    Evaluated(step=1, metrics={"eval/loss": 0.4}, items=2),
    Saved(step=1, checkpoint=None),
    End(step=3, finished=True),
)


class Recorder(Listener):
    def __init__(self, name, heard):
        self.name, self._heard, self.count = name, heard, 0

    def _hear(self, event):
        self.count += 1
        self._heard.append((self.name, event))

    on_start = on_step = on_log = on_evaluated = on_saved = on_end = _hear

    def state(self):
        return {"count": self.count} if self.count else {}

    def restore(self, state):
        self.count = state["count"]


def test_every_listener_hears_every_event_in_list_order():
    heard, events = [], Events()
    events.add(Recorder("a", heard), Recorder("b", heard))
    for event in ALL:
        events.emit(event)
    assert heard == [(name, event) for event in ALL for name in "ab"]


def test_a_plain_listener_reacts_to_nothing():
    events = Events()
    events.add(Listener())
    for event in ALL:
        events.emit(event)
    assert events.states() == {}


def test_an_event_raised_by_a_listener_reaches_all():
    heard, events = [], Events()

    class Evaluation(Listener):
        name = "evaluation"

        def on_step(self, event):
            events.emit(Evaluated(step=event.step, metrics={}, items=1))

    events.add(Evaluation(), Recorder("a", heard))
    events.emit(ALL[1])
    assert [type(event) for _, event in heard] == [Evaluated, Step]


def test_states_are_restored_by_name():
    saved = Events()
    saved.add(first := Recorder("a", []), Recorder("b", []))
    first.on_start(ALL[0])
    first.on_step(ALL[1])
    states = json.loads(json.dumps(saved.states()))
    assert states == {"a": {"count": 2}}  # a listener without state writes none
    resumed = Events()
    resumed.add(again := Recorder("a", []), other := Recorder("c", []))
    resumed.restore({**states, "removed since": {"x": 1}})
    assert (again.count, other.count) == (2, 0)


def test_two_listeners_cannot_share_a_name():
    events = Events()
    with pytest.raises(AssertionError, match="share a name"):
        events.add(Recorder("a", []), Recorder("a", []))

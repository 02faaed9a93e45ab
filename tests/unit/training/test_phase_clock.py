"""Seconds of phases: by the host's clock on a CPU, by events that are read later on a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from minimind.training import phase_clock
from minimind.training.phase_clock import PhaseClock


@pytest.fixture
def now(monkeypatch):
    time = SimpleNamespace(seconds=10.0)
    monkeypatch.setattr(phase_clock, "time", SimpleNamespace(perf_counter=lambda: time.seconds))
    return time


def test_a_phase_lasts_until_the_next_mark(now):
    clock = PhaseClock(torch.device("cpu"))
    for phase, seconds in (("a", 2.0), ("b", 3.0), ("a", 0.5), (None, 100.0), ("b", 1.0), (None, 5.0)):
        clock.mark(phase)
        now.seconds += seconds
    clock.read()
    assert clock.seconds == {"a": 2.5, "b": 4.0}
    clock.reset()
    assert clock.seconds == {}


class Event:
    """Of a device that runs behind the host: an event has its time when it is recorded, and is passed later."""

    made: list[Event]
    passed = 0.0

    def __init__(self, enable_timing):
        assert enable_timing
        Event.made.append(self)

    def record(self):
        Event.time += 1.0
        self.at = Event.time

    def query(self):
        return self.at <= Event.passed

    def elapsed_time(self, other):
        assert self.query(), "reading this would wait for the device"
        assert other.query(), "reading this would wait for the device"
        return 1000 * (other.at - self.at)


@pytest.fixture
def gpu(monkeypatch):
    Event.made, Event.time, Event.passed = [], 0.0, 0.0
    monkeypatch.setattr(torch.cuda, "Event", Event)
    return PhaseClock(torch.device("cuda"))


def test_events_are_read_when_the_device_has_passed_them_and_used_again(gpu):
    for phase in ("a", "b", None):
        gpu.mark(phase)
    gpu.read()
    assert gpu.seconds == {}
    Event.passed = 2.0
    gpu.read()
    assert gpu.seconds == {"a": 1.0}
    for _ in range(20):
        Event.passed = Event.time
        gpu.read()
        for phase in ("a", "b", None):
            gpu.mark(phase)
    Event.passed = Event.time
    gpu.read()
    assert gpu.seconds == {"a": 21.0, "b": 21.0}
    assert len(Event.made) <= 7

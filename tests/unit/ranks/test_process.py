"""The end of ranks: together after a finished run; after a lost connection the watch first reports the lost rank."""

from __future__ import annotations

import pytest
import torch

from minimind.errors import DataError
from minimind.ranks import exits, process
from minimind.ranks.verdicts import notice_seconds
from minimind.ranks.world import World


class Ended(BaseException):
    """Raised instead of ending the process; nothing catches it."""


@pytest.fixture
def events(monkeypatch):
    """Names of the calls that would end the process, in order."""
    calls: list[object] = []

    def leave(status):
        calls.append(status)
        raise Ended

    monkeypatch.setattr(exits.os, "_exit", leave)
    monkeypatch.setattr(process.time, "sleep", calls.append)
    for owner, name in ((process, "barrier"), (process.dist, "destroy_process_group")):
        monkeypatch.setattr(owner, name, lambda name=name: calls.append(name))
    return calls


class Watch:
    def __init__(self, events, fails=None) -> None:
        self.events, self.fails = events, fails

    def meet(self):
        self.events.append("meet")
        if self.fails:
            raise self.fails

    def close(self):
        self.events.append("close")


def context(watch) -> process.RankContext:
    world = World(rank=0, local_rank=0, size=2, device=torch.device("cpu"), meet=watch.meet)
    return process.RankContext(world=world, watch=watch)


@pytest.mark.parametrize("status", [0, process.PREEMPTED])
def test_ranks_are_watched_until_all_have_reached_the_end(status, events):
    with pytest.raises(Ended):
        process.end(status, context(Watch(events)))
    assert events == ["meet", "close", "barrier", "destroy_process_group", status]


def test_a_failed_rank_does_not_wait(events):
    with pytest.raises(Ended):
        process.end(1, context(Watch(events)))
    assert events == [1]


@pytest.mark.parametrize("ranks", [2, 800])
def test_a_rank_that_is_lost_at_the_end_is_reported_by_the_watch(ranks, events, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    broken = torch.distributed.DistNetworkError("connection reset by peer")
    with pytest.raises(Ended), process.user_errors():
        process.end(0, context(Watch(events, fails=broken)))
    assert events == ["meet", notice_seconds(ranks), process.CRASHED]


@pytest.mark.parametrize(
    ("error", "status", "printed", "told"),
    [
        (ValueError("a bug\nin detail"), process.CRASHED, "On rank 1:\nTraceback (most", "ValueError: a bug"),
        (RuntimeError("out of memory"), process.CRASHED, "RuntimeError: out of memory", "RuntimeError: out of memory"),
        (RuntimeError("gloo: connection closed"), process.CRASHED, "gloo: connection closed", None),
        (DataError("no file"), process.FAILED, "DataError on rank 1: no file", "DataError: no file"),
        (DataError("no file", agreed=True), process.FAILED, "", None),
    ],
)
def test_error_is_printed_and_told_to_the_other_ranks(error, status, printed, told, events, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    watch = Watch(events)
    watch.fail = lambda text: events.append(text)
    with pytest.raises(Ended), process.user_errors(), process.tell_errors(watch):
        raise error
    assert events[-1] == status
    assert [text for text in events if isinstance(text, str)] == ([told] if told else [])
    said = capsys.readouterr().err
    assert printed in said
    assert ("Traceback" in said) == (status == process.CRASHED)

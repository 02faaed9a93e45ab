"""The end of ranks: together after a finished run; after a lost connection the watch first reports the lost rank."""

from __future__ import annotations

import pytest
import torch

from minimind.ranks import process
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

    monkeypatch.setattr(process.os, "_exit", leave)
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
    with pytest.raises(torch.distributed.DistNetworkError), process.user_errors():
        process.end(0, context(Watch(events, fails=broken)))
    assert events == ["meet", notice_seconds(ranks)]

"""How ranks end: together and watched if the run went well, and not before the watch has said who is gone if not."""

from __future__ import annotations

import os

import pytest
import torch

from minimind.ranks import process
from minimind.ranks.watch import notice_seconds
from minimind.ranks.world import World


class Ended(BaseException):
    """Instead of the process's end: nothing catches it."""


@pytest.fixture
def events(monkeypatch):
    """What happens, in order, instead of happening."""
    said: list[object] = []

    def leave(status):
        said.append(status)
        raise Ended

    monkeypatch.setattr(process.os, "_exit", leave)
    monkeypatch.setattr(process.time, "sleep", said.append)
    for name in ("barrier", "destroy_process_group"):
        monkeypatch.setattr(process.dist, name, lambda name=name: said.append(name))
    return said


class Watch:
    def __init__(self, events, fails=None) -> None:
        self.events, self.fails = events, fails

    def meet(self):
        self.events.append("meet")
        if self.fails:
            raise self.fails

    def close(self):
        self.events.append("close")


def world(watch) -> World:
    return World(rank=0, local_rank=0, size=2, device=torch.device("cpu"), watch=watch)


@pytest.mark.parametrize("status", [0, process.PREEMPTED])
def test_ranks_are_watched_until_all_have_come_to_the_end(status, events):
    with pytest.raises(Ended):
        process.end(status, world(Watch(events)))
    assert events == ["meet", "close", "barrier", "destroy_process_group", status]


def test_a_failure_waits_for_nobody(events):
    with pytest.raises(Ended):
        process.end(1, world(Watch(events)))
    assert events == [1]


@pytest.mark.parametrize("ranks", [2, 800])
def test_a_rank_that_vanishes_at_the_end_is_left_to_the_watch_to_name(ranks, events, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    broken = torch.distributed.DistNetworkError("connection reset by peer")
    with pytest.raises(torch.distributed.DistNetworkError), process.user_errors():
        process.end(0, world(Watch(events, fails=broken)))
    assert events == ["meet", notice_seconds(ranks)]


def test_shapes_that_are_remembered_are_bounded_on_a_cpu(monkeypatch):
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    monkeypatch.setenv(names[0], "7")
    monkeypatch.setenv(names[1], "")  # so that it is taken back in any case
    monkeypatch.delenv(names[1])
    process.bound_primitives(World(rank=0, local_rank=0, size=1, device=torch.device("cuda")))
    assert names[1] not in os.environ
    process.bound_primitives(World(rank=0, local_rank=0, size=1, device=torch.device("cpu")))
    # What a user has set stays.
    assert os.environ[names[0]] == "7"
    assert int(os.environ[names[1]]) > 0

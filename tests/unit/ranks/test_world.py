"""Identity of a rank."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from minimind.ranks.world import World


def world(rank=0, size=3, device="cpu", hosts=("a", "a", "b"), **options) -> World:
    return World(rank=rank, local_rank=0, size=size, device=torch.device(device), hosts=hosts, **options)


def test_only_rank_0_is_main():
    assert world(0).is_main
    assert not world(1).is_main


@pytest.mark.parametrize(("device", "on_cpu"), [("cpu", True), ("cuda:1", False), ("meta", False)])
def test_on_cpu_depends_on_the_kind_of_device(device, on_cpu):
    assert world(device=device).on_cpu == on_cpu


def test_ranks_are_named_with_their_hosts():
    assert world().name([0, 2]) == "rank 0 on a, rank 2 on b"
    assert world(hosts=("a", "a", "a")).name([0, 2]) == "ranks 0, 2"


def test_meeting_of_a_rank_without_watch_returns():
    assert world().meet() is None


def test_worlds_are_equal_whatever_their_meeting_and_cannot_be_changed():
    one = world(meet=lambda: None)
    assert one == world()
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.rank = 1

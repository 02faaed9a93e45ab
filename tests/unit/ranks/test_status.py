"""Status of a rank, the slowest ranks, and the history of statuses."""

from __future__ import annotations

import sys

import pytest

from minimind.ranks.status import (
    Peer,
    RankStatus,
    StatusHistory,
    locate,
    name_ranks,
    name_ranks_by_host,
    slowest_ranks,
)


def status(phases=1, *, ticks=0, heartbeat=0, seconds=0.0, waits=False, phase="backward", step=3) -> RankStatus:
    return RankStatus(
        heartbeat=heartbeat,
        phases=phases,
        ticks=ticks,
        phase=phase,
        step=step,
        seconds=seconds,
        line="engine/policy.py:1",
        waits=waits,
    )


def test_slowest_rank_has_entered_the_fewest_phases():
    assert slowest_ranks({0: status(8, waits=True), 1: status(7), 2: status(8, waits=True)}) == [1]


def test_slowest_rank_in_the_same_phase_is_the_one_that_computes():
    assert slowest_ranks({0: status(8, waits=True), 1: status(8), 2: status(8, waits=True)}) == [1]
    assert slowest_ranks({0: status(8, waits=True), 1: status(8, waits=True)}) == [0, 1]


def test_seconds_without_progress_count_from_the_last_progress_of_any_rank():
    history = StatusHistory()
    assert history.seconds_without_progress(100.0) == 0.0
    history.record({0: status(4, seconds=6.0), 1: status(4, seconds=2.0)}, now=100.0)
    assert history.seconds_without_progress(100.0) == 2.0
    # A tick is progress, a heartbeat is not.
    history.record({0: status(4, heartbeat=1), 1: status(4, ticks=1)}, now=105.0)
    assert history.seconds_without_progress(107.0) == 2.0
    history.record({0: status(4, heartbeat=9), 1: status(4, ticks=1, heartbeat=9)}, now=125.0)
    assert history.seconds_without_progress(125.0) == 20.0


def test_silent_ranks_have_an_old_heartbeat():
    history = StatusHistory()
    history.record({0: status(heartbeat=1), 1: status(heartbeat=1)}, now=0.0)
    history.record({0: status(heartbeat=2), 1: status(heartbeat=1)}, now=20.0)
    assert history.silent_ranks(25.0, 20.0) == [1]
    assert history.silent_ranks(15.0, 20.0) == []


def test_status_as_json_and_as_text():
    one = status(5, phase="policy forward", step=12)
    assert RankStatus.from_json(one.to_json().encode()) == one
    assert str(one) == "policy forward of step 12, at engine/policy.py:1"
    assert str(status(phase="loading", step=0)) == "loading, at engine/policy.py:1"


def test_peer_as_json_and_as_text():
    peer = Peer(local_rank=1, pid=12, host="a", machine="a pid:[1] x", device="cuda", devices=8)
    assert Peer.from_json(peer.to_json().encode()) == peer
    assert str(peer) == "process 12 on a"


def test_locate_returns_the_line_and_whether_the_frame_waits():
    def meet():
        return locate(sys._getframe())

    def work():
        return locate(sys._getframe())

    assert meet()[1]
    line, waits = work()
    assert not waits
    assert line == f"test_status.py:{work.__code__.co_firstlineno + 1}"


def test_locate_without_a_frame():
    assert locate(None) == ("the end of its process", False)


@pytest.mark.parametrize(
    ("ranks", "text"), [([3], "rank 3"), ([2, 0, 1, 5], "ranks 0-2, 5"), ([4, 7], "ranks 4, 7"), ([1, 2], "ranks 1-2")]
)
def test_names_of_ranks_join_consecutive_numbers(ranks, text):
    assert name_ranks(ranks) == text


def test_names_of_ranks_have_hosts_if_there_are_several():
    assert name_ranks_by_host([0, 1, 2], ["a", "a", "b"]) == "ranks 0-1 on a, rank 2 on b"
    assert name_ranks_by_host([0, 2], ["a", "a", "a"]) == "ranks 0, 2"

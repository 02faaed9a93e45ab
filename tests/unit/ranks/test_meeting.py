"""Meetings of three ranks, which are threads here."""

from __future__ import annotations

import threading
import time

import torch.distributed as dist

from minimind.ranks.meeting import Meetings


def start(store, ranks, size, events) -> list[threading.Thread]:
    def attend(rank: int) -> None:
        meetings = Meetings(store, rank, size)
        for number in (1, 2):
            meetings.meet()
            events.append((number, rank))

    threads = [threading.Thread(target=attend, args=(rank,), daemon=True) for rank in ranks]
    for thread in threads:
        thread.start()
    return threads


def test_nobody_leaves_a_meeting_before_the_last_rank_arrives():
    store, events = dist.HashStore(), []
    early = start(store, (0, 2), 3, events)
    time.sleep(0.2)
    assert events == []
    late = start(store, (1,), 3, events)
    for thread in (*early, *late):
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert sorted(events) == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]


def test_rank_0_which_holds_the_store_leaves_last():
    store, left = dist.HashStore(), threading.Event()

    def attend() -> None:
        Meetings(store, 0, 2).meet()
        left.set()

    threading.Thread(target=attend, daemon=True).start()
    if store.add("meeting/1", 1) == 2:  # rank 1 arrives
        store.set("meeting/1/all", "1")
    store.wait(["meeting/1/all"])
    assert not left.wait(0.2)
    if store.add("meeting/1/heard", 1) == 2:  # rank 1 leaves
        store.set("meeting/1/done", "1")
    assert left.wait(30)

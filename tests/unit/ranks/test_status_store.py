"""The status thread with a store in memory."""

from __future__ import annotations

import threading
import time

import pytest
import torch.distributed as dist

from minimind.ranks import status_store
from minimind.ranks.status import RankStatus
from minimind.ranks.status_store import StatusExchange


def status(heartbeat: int) -> RankStatus:
    return RankStatus(
        heartbeat=heartbeat, phases=1, ticks=0, phase="data", step=2, seconds=0.0, line="x.py:1", waits=False
    )


@pytest.fixture
def exchange(monkeypatch):
    """Makes a started exchange of rank 1 of 2 that reports every 10 ms."""
    monkeypatch.setattr(status_store, "_REPORT_SECONDS", 0.01)
    started = []

    def make(store, read_interval=0.0):
        started.append(StatusExchange(store, 1, 2, read_interval, status))
        started[-1].start()
        return started[-1]

    yield make
    for one in started:
        one.stop()


def wait_until(condition) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until, "the status thread did not do it within 30 s"
        time.sleep(0.005)


def heartbeat_of(store, rank: int) -> int:
    return RankStatus.from_json(store.get(f"status/{rank}")).heartbeat


def test_heartbeat_grows_and_nothing_is_read_without_a_request(exchange):
    store = dist.HashStore()
    store.set("status/0", status(70).to_json())
    one = exchange(store)
    wait_until(lambda: store.check(["status/1"]) and heartbeat_of(store, 1) >= 5)
    assert one.reply is None


def test_request_returns_every_rank_with_the_time_of_the_read(exchange):
    store = dist.HashStore()
    store.set("status/0", status(70).to_json())
    before = time.monotonic()
    one = exchange(store)
    one.request(urgent=False)
    wait_until(lambda: one.reply is not None)
    assert one.reply.statuses[0] == status(70)
    assert one.reply.statuses[1].heartbeat >= 1
    assert before <= one.reply.time <= time.monotonic()


def test_request_waits_until_every_rank_has_reported(exchange):
    store = dist.HashStore()
    one = exchange(store)
    one.request(urgent=True)
    wait_until(lambda: store.check(["status/1"]) and heartbeat_of(store, 1) >= 5)
    assert one.reply is None
    store.set("status/0", status(1).to_json())
    wait_until(lambda: one.reply is not None)


def test_urgent_request_does_not_wait_for_the_interval(exchange):
    store = dist.HashStore()
    store.set("status/0", status(70).to_json())
    one = exchange(store, read_interval=1e9)
    one.request(urgent=False)
    wait_until(lambda: store.check(["status/1"]) and heartbeat_of(store, 1) >= 5)
    assert one.reply is None
    one.request(urgent=True)
    wait_until(lambda: one.reply is not None)


def test_cancelled_request_leaves_no_reply(exchange):
    store = dist.HashStore()
    store.set("status/0", status(70).to_json())
    one = exchange(store)
    one.request(urgent=True)
    wait_until(lambda: one.reply is not None)
    one.cancel()
    beats = heartbeat_of(store, 1)
    # A read that ran during the cancellation may still store one reply.
    wait_until(lambda: heartbeat_of(store, 1) > beats + 1)
    one.discard()
    wait_until(lambda: heartbeat_of(store, 1) > beats + 5)
    assert one.reply is None


def test_last_report_comes_at_once_and_is_the_last(exchange, monkeypatch):
    monkeypatch.setattr(status_store, "_REPORT_SECONDS", 1e6)
    store = dist.HashStore()
    one = exchange(store)
    one.report_now(30)
    assert heartbeat_of(store, 1) == 1
    assert one._reported.is_set()
    wait_until(lambda: not any(thread.name == "status" for thread in threading.enumerate()))


def test_broken_connection_is_recorded_with_its_time(exchange):
    class BrokenStore:
        def set(self, key, value):
            raise dist.DistNetworkError("connection reset by peer")

    before = time.monotonic()
    one = exchange(BrokenStore())
    wait_until(lambda: one.failed_at is not None)
    assert before <= one.failed_at <= time.monotonic()

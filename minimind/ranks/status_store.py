"""Exchange of rank statuses through the ranks' common store, in a thread of its own.

own status -> store, once a second;  on request: statuses of all ranks <- store -> StatusExchange.reply -> watch thread

The thread is separate because rank 0 holds the store: if rank 0 dies or stops, a request may never return, and the
watch thread must not block.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable

import torch.distributed as dist

from minimind.ranks.status import RankStatus

# Rank 0's store serves one small request per rank in this time.
_REPORT_SECONDS = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """Statuses of all ranks, and the time (seconds, monotonic clock) of the request that got them."""

    time: float
    statuses: dict[int, RankStatus]


class StatusExchange:
    """Reports this rank's status, and reads the statuses of all ranks while they are requested.

    Args:
        store: a connection to the common store that nothing else uses: a connection serves one request at a time.
        rank: this rank.
        size: number of ranks.
        read_interval: seconds between two reads of all statuses.
        own_status: makes this rank's status from the number of its heartbeat.

    Attributes:
        reply: the last answer of the store; None if there was no answer since the request began.
        failed_at: when the connection to the store broke (seconds, monotonic clock); None if it works.
    """

    def __init__(
        self, store: dist.Store, rank: int, size: int, read_interval: float, own_status: Callable[[int], RankStatus]
    ) -> None:
        self.reply: Reply | None = None
        self.failed_at: float | None = None
        self._store, self._own_status = store, own_status
        self._keys = [f"status/{other}" for other in range(size)]
        self._own_key = self._keys[rank]
        self._read_interval = read_interval
        self._requested = threading.Event()
        self._urgent = False
        self._stopped, self._hurry, self._reported = threading.Event(), threading.Event(), threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="status", daemon=True).start()

    def stop(self) -> None:
        """End the thread after its current request."""
        self._stopped.set()
        self._hurry.set()

    def report_now(self, timeout: float) -> None:
        """Report this rank's status once more, and end the thread; waits for that up to `timeout` seconds.

        It returns earlier if the store is gone, with rank 0; a store that is only slow may not answer in time.
        """
        self._hurry.set()
        self._reported.wait(timeout)

    def request(self, urgent: bool) -> None:
        """Ask for the statuses of all ranks: every `read_interval` seconds, or with every report if `urgent`."""
        self._urgent = urgent
        self._requested.set()

    def cancel(self) -> None:
        """Ask for no statuses, and discard the last reply, which would soon be outdated."""
        self._requested.clear()
        # A read that has already begun may still store its reply afterwards.
        self.reply = None

    def discard(self) -> None:
        """Discard the last reply; the request remains."""
        self.reply = None

    def _run(self) -> None:
        heartbeat, read_at = 0, 0.0
        try:
            self._report(heartbeat)
            while not self._stopped.is_set():
                last = self._hurry.wait(_REPORT_SECONDS)
                if self._stopped.is_set():
                    return
                heartbeat += 1
                self._report(heartbeat)
                if last:
                    return
                now = time.monotonic()
                due = self._requested.is_set() and (self._urgent or now - read_at > self._read_interval)
                # `multi_get` would block until every rank has reported once.
                if due and self._store.check(self._keys):
                    self.reply = Reply(time=now, statuses=self._read())
                    read_at = now
        except RuntimeError:
            # The connection is broken: rank 0 has died or its machine is not reachable.
            self.failed_at = time.monotonic()
        finally:
            self._reported.set()

    def _report(self, heartbeat: int) -> None:
        self._store.set(self._own_key, self._own_status(heartbeat).to_json())

    def _read(self) -> dict[int, RankStatus]:
        texts = self._store.multi_get(self._keys)
        return {rank: RankStatus.from_json(text) for rank, text in enumerate(texts)}

"""Meetings of all ranks in their common store, without a time limit.

A collective fails at torch's time limit, for example while one rank tokenises for an hour.
"""

from __future__ import annotations

import datetime

import torch.distributed as dist

_NO_LIMIT = datetime.timedelta(days=365)


class Meetings:
    """Meetings of one rank with all others; every rank must take part in the same number of them.

    Args:
        store: the ranks' common store.
        rank: this rank.
        size: number of ranks.
    """

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._number = 0

    def meet(self) -> None:
        """Wait until all ranks have called it."""
        self._number += 1
        key = f"meeting/{self._number}"
        if self._store.add(key, 1) == self._size:
            self._store.set(f"{key}/all", "1")
        self._store.wait([f"{key}/all"], _NO_LIMIT)
        # The store may be part of rank 0's process, so rank 0 leaves last: when all ranks have received the answer.
        if self._store.add(f"{key}/heard", 1) == self._size:
            self._store.set(f"{key}/done", "1")
        if self._rank == 0:
            self._store.wait([f"{key}/done"], _NO_LIMIT)

"""Batches ahead of time: pairs of each step are laid out in a thread while the step before computes.

PairStream + PairTable -> (thread) PackedPairs or PaddedPairs, one list per global step
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence

from minimind.data.pack import PairBatch, pinned
from minimind.data.stream import PairStream
from minimind.data.table import PairTable, PreferencePair

Layout = Callable[[Sequence[PreferencePair]], PairBatch]

# Steps laid out ahead: laying out takes far less time than a step.
_AHEAD = 2


def train_batches(
    table: PairTable, stream: PairStream, layout: Layout, *, rank: int, start: int, end: int, pin: bool = False
) -> Iterator[list[PairBatch]]:
    """Micro-batches of global steps `start` to `end` (both from 1, both included), for one rank; with `pin` in memory
    that a GPU can read by itself."""
    ready: queue.Queue[list[PairBatch] | BaseException] = queue.Queue(maxsize=_AHEAD)
    stop = threading.Event()

    def put(item: list[PairBatch] | BaseException) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for step in range(start, end + 1):
                batches = [layout([table[i] for i in pairs]) for pairs in stream.micro_batches(step, rank)]
                if not put([pinned(batch) for batch in batches] if pin else batches):
                    return
        except BaseException as error:  # noqa: BLE001 - handed to the thread that can raise it
            put(error)

    thread = threading.Thread(target=work, name="layout", daemon=True)
    thread.start()
    try:
        for _ in range(start, end + 1):
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def eval_batches(
    table: PairTable, layout: Layout, *, batch_size: int, rank: int, world_size: int
) -> Iterator[tuple[PairBatch, list[float]]]:
    """Every pair once over all ranks, with a weight for each: ranks take the same number of batches, and where pairs
    run out, one is repeated with weight 0, because under ZeRO-3 all ranks must run every forward."""
    rounds = -(-len(table) // (batch_size * world_size))
    for number in range(rounds):
        first = (number * world_size + rank) * batch_size
        indices = range(first, min(first + batch_size, len(table)))
        if len(indices):
            yield layout([table[i] for i in indices]), [1.0] * len(indices)
        else:
            yield layout([table[0]]), [0.0]

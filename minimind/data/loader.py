"""Builds batches: a thread prepares the batches of the next steps while the current step computes.

PairSampler (indices) + PairTable (pairs) -> thread: layout(pairs) -> one list of batches per global step
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence

from minimind.data.packs import PairBatch
from minimind.data.sampler import PairSampler
from minimind.data.table import PairTable, PreferencePair

# How pairs become a batch: `packs.pack` or `packs.pad`.
Layout = Callable[[Sequence[PreferencePair]], PairBatch]

# Global steps to prepare ahead. Building a batch takes far less time than a step, so few are enough.
_STEPS_AHEAD = 2


def train_batches(
    table: PairTable, sampler: PairSampler, layout: Layout, *, rank: int, start: int, end: int, pin: bool = False
) -> Iterator[list[PairBatch]]:
    """Yield one rank's micro-batches of each global step.

    Args:
        start, end: first and last global step, both counted from 1 and included.
        pin: put the batches in page-locked memory, for asynchronous copies to a GPU.

    Raises:
        Exception: what `layout` raised in the thread, at the step where it was raised.
    """
    ready: queue.Queue[list[PairBatch] | BaseException] = queue.Queue(maxsize=_STEPS_AHEAD)
    stop = threading.Event()

    def put(item: list[PairBatch] | BaseException) -> bool:
        # A put without a timeout would block forever once the consumer has stopped.
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def build() -> None:
        try:
            for step in range(start, end + 1):
                batches = [layout([table[i] for i in pairs]) for pairs in sampler.micro_batches(step, rank)]
                if not put([batch.pin_memory() for batch in batches] if pin else batches):
                    return
        except BaseException as error:  # noqa: BLE001 - the consumer's thread raises it
            put(error)

    thread = threading.Thread(target=build, name="batches", daemon=True)
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
    """Yield one rank's batches of an evaluation, each with one weight per pair.

    Over all ranks each pair has weight 1 once. Every rank gets the same number of batches, because under ZeRO-3 all
    ranks must run every forward; a rank without a pair left gets the first pair with weight 0.
    """
    rounds = -(-len(table) // (batch_size * world_size))
    for number in range(rounds):
        first = (number * world_size + rank) * batch_size
        indices = range(first, min(first + batch_size, len(table)))
        if len(indices):
            yield layout([table[i] for i in indices]), [1.0] * len(indices)
        else:
            yield layout([table[0]]), [0.0]

"""Builds batches: a thread prepares the next batches while the current one computes.

Sampler (indices) + Rows (pairs)       -> thread: layout(pairs) -> one list of batches per global step
held-out pairs                             -> thread: layout(pairs) -> batches of an evaluation
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

from minimind.data.packs import Layout, PairBatch
from minimind.data.pair_tables import PairTables, Rows
from minimind.data.sampler import Sampler

# Items to prepare ahead. Building a batch takes far less time than computing it, so few are enough.
_AHEAD = 2

Item = TypeVar("Item")


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the items of an iterator, which a thread advances while the consumer works on earlier items.

    Raises:
        Exception: what the iterator raised, after the items before it.
    """
    # An item, None at the end, or an error.
    ready: queue.Queue[tuple[Item] | BaseException | None] = queue.Queue(maxsize=_AHEAD)
    stop = threading.Event()

    def put(item: tuple[Item] | BaseException | None) -> bool:
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
            for item in items:
                if not put((item,)):
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - the consumer's thread raises it
            put(error)

    thread = threading.Thread(target=build, name="batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        stop.set()
        thread.join()


def train_batches(
    table: Rows, sampler: Sampler, layout: Layout, *, rank: int, start: int, end: int, pin: bool = False
) -> Iterator[list[PairBatch]]:
    """Yield one rank's micro-batches of each global step.

    Args:
        start, end: first and last global step, both counted from 1 and included.
        pin: put the batches in page-locked memory, for asynchronous copies to a GPU.

    Raises:
        Exception: what `layout` raised in the thread, at the step where it was raised.
    """

    def build() -> Iterator[list[PairBatch]]:
        for step in range(start, end + 1):
            batches = [layout([table[i] for i in pairs]) for pairs in sampler.micro_batches(step, rank)]
            yield [batch.pin_memory() for batch in batches] if pin else batches

    return ahead(build())


def eval_batches(
    table: PairTables,
    layout: Layout,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    pin: bool = False,
    part: range | None = None,
) -> Iterator[tuple[PairBatch, list[float]]]:
    """Yield one rank's batches of an evaluation, each with one weight per pair.

    Over all ranks each pair has weight 1 once. Every rank gets the same number of batches, because under ZeRO-3 all
    ranks must run every forward; a rank without a pair left gets the first pair with weight 0.

    Args:
        pin: as for `train_batches`.
        part: indices of the pairs, one after the other; None: all.
    """
    part = range(len(table)) if part is None else part

    def build() -> Iterator[tuple[PairBatch, list[float]]]:
        rounds = -(-len(part) // (batch_size * world_size))
        for number in range(rounds):
            first = (number * world_size + rank) * batch_size
            indices = part[first : first + batch_size]
            batch = layout([table[i] for i in indices or part[:1]])
            yield batch.pin_memory() if pin else batch, [1.0] * len(indices) or [0.0]

    return ahead(build())

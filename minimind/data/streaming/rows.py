"""The rows of a run that streams, and which of them a global step takes.

    step -> StreamSampler -> rows of the order (order.py), distributed over ranks and micro-batches -> numbers of rows
    number of a row -> StreamedRows -> the shard that it is in, memory-mapped -> PreferencePair

A global batch depends on the data, the seed and its size, not on the number of ranks. Each rank reads the rows of its
own micro-batches, and of the others their lengths. Resident are the shards of two windows at most, as far as the system
keeps their pages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from minimind.data.pair_tables import Rows
from minimind.data.reasons import described
from minimind.data.sampler import distribute
from minimind.data.sources import Source
from minimind.data.streaming.order import Part, StreamOrder
from minimind.data.streaming.shards import Shard, ShardStore
from minimind.data.table import PairTable, PreferencePair
from minimind.errors import DataError

_POLL_SECONDS = 0.1


class ShardReader:
    """Shards that another process makes: waits for those that are not there yet.

    Args:
        stores: one for each word.
        problem: why no shard will follow, as far as this process knows; empty if one may.
        on_work: called when another process has made progress.

    Attributes:
        waited: seconds.
    """

    def __init__(self, stores: Sequence[ShardStore], problem: Callable[[], str], on_work: Callable[[], object]) -> None:
        self._stores, self._problem, self._on_work = stores, problem, on_work
        self._written = 0
        self.waited = 0.0

    def shard(self, word: int, number: int) -> Shard | None:
        """A shard of the list; None behind the last one.

        Raises:
            DataError: it cannot be made.
        """
        store = self._stores[word]

        def is_known() -> bool:
            store.refresh()
            return number < len(store.shards) or store.ended

        while not is_known():
            self._wait(is_known)
        return store.shards[number] if number < len(store.shards) else None

    def open(self, part: Part) -> PairTable:
        """The entries of a shard that are trained on.

        Raises:
            DataError: it cannot be made again, or is damaged.
        """
        store = self._stores[part.word]
        while not store.has(part.shard.number):
            self._wait(lambda: store.has(part.shard.number))
        return store.open(part.shard)

    def _wait(self, is_there: Callable[[], bool]) -> None:
        # Asked first: what a process that has ended wrote before, its reason or the shard, is there to be read.
        problem = self._problem()
        for store in self._stores:
            if reason := store.failure():
                raise DataError(reason)
        if problem and not is_there():
            # The other ranks of this machine see it too.
            with contextlib.suppress(OSError):
                self._stores[0].fail(problem)
            raise DataError(problem)
        time.sleep(_POLL_SECONDS)
        self.waited += _POLL_SECONDS
        written = sum(store.written() for store in self._stores)
        if written != self._written:
            self._written = written
            self._on_work()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Opened:
    """A shard that is open.

    Attributes:
        costs, tokens: `PairTable.costs` and `packed_tokens`.
    """

    table: PairTable
    costs: NDArray[np.float64]
    tokens: NDArray[np.int64]


class StreamedRows(Rows):
    """The rows of a run, by their numbers in the order of windows.

    Attributes:
        example: what is wrong with the first wrong row of the shards that were opened; empty if there is none.
    """

    def __init__(self, order: StreamOrder, reader: ShardReader, items: str) -> None:
        self.order, self.reader = order, reader
        self.example = ""
        self._items = items
        self._opened: dict[tuple[int, int], _Opened] = {}

    @property
    def items(self) -> str:
        return self._items

    def __getitem__(self, index: int) -> PreferencePair:
        part = self.order.part_of(index)
        return dataclasses.replace(self._open(part).table[index - part.start], index=index)

    def row_of(self, index: int) -> tuple[Source, int]:
        part = self.order.part_of(index)
        table = self._open(part).table
        return table.source, int(table.lines[table.selected[index - part.start]])

    def tables(self, window: int) -> list[PairTable]:
        """The shards of a window."""
        return [self._open(part).table for part in self.order.window(window).parts]

    def costs(self, indices: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Estimated cost of training on some rows, and their tokens in packs, (len(indices),) each."""
        parts = [self.order.part_of(index) for index in indices]
        opened = [self._open(part) for part in parts]
        places = [index - part.start for index, part in zip(indices, parts, strict=True)]
        costs = [one.costs[place] for one, place in zip(opened, places, strict=True)]
        tokens = [one.tokens[place] for one, place in zip(opened, places, strict=True)]
        return np.array(costs, np.float64), np.array(tokens, np.int64)

    def close_before(self, row: int) -> None:
        """Close the shards of windows before the one in front of this row's."""
        number = self.order.window_at(row).number
        windows = [self.order.window(one) for one in range(max(0, number - 1), number + 1)]
        used = {(part.word, part.shard.number) for window in windows for part in window.parts}
        for key in [key for key in list(self._opened) if key not in used]:
            self._opened.pop(key, None)

    def _open(self, part: Part) -> _Opened:
        key = (part.word, part.shard.number)
        opened = self._opened.get(key)
        if opened is None:
            table = self.reader.open(part)
            opened = _Opened(table=table, costs=table.costs, tokens=table.packed_tokens)
            self._opened[key] = opened
            if table.bad and not self.example:
                self.example = next(iter(described(table.source, table.bad, 1)))
        return opened


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamSampler:
    """The order of streamed rows in a run, and their distribution over ranks and micro-batches.

    Attributes:
        rows: of the run.
        micro_batch_size, accumulation_steps, world_size, token_budget: as in `PairSampler`.
        balanced: micro-batches cost about the same; else each has consecutive rows.
        identity: what the global batches depend on besides seed and size, for manifests.
        on_rows: told the last row that a step needs.
    """

    rows: StreamedRows
    micro_batch_size: int
    accumulation_steps: int
    world_size: int
    balanced: bool
    token_budget: int | None
    identity: Mapping[str, object]
    on_rows: Callable[[int], object] = lambda row: None

    @property
    def global_batch_size(self) -> int:
        return self.micro_batch_size * self.accumulation_steps * self.world_size

    def epoch_of(self, step: int) -> float:
        """Number of epochs completed after global step `step` (from 1)."""
        return self.rows.order.epoch_at(step * self.global_batch_size)

    def micro_batches(self, step: int, rank: int) -> list[list[int]]:
        """Numbers of the rows of one rank in global step `step` (from 1): one list per micro-batch. It may wait.

        Raises:
            DataError: data cannot be used.
        """
        last = step * self.global_batch_size - 1
        self.on_rows(last)
        self.rows.close_before(last - self.global_batch_size + 1)
        batch = self._batch(step)
        costs, tokens = self.rows.costs(batch) if self.balanced else (None, None)
        return distribute(
            batch,
            costs,
            tokens,
            micro_batch_size=self.micro_batch_size,
            accumulation_steps=self.accumulation_steps,
            world_size=self.world_size,
            token_budget=self.token_budget,
        )[rank]

    def position_after(self, step: int) -> dict[str, int | str]:
        """Position after global step `step` (from 1), as of `PairSampler`; shards that are removed are not needed."""
        last = ",".join(map(str, self._batch(step)))
        digest = hashlib.sha256(last.encode()).hexdigest()[:16]
        return {"pairs": step * self.global_batch_size, "last": digest}

    def _batch(self, step: int) -> list[int]:
        size = self.global_batch_size
        found: list[int] = self.rows.order.rows((step - 1) * size, step * size).tolist()
        return found

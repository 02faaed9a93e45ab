"""Makes shards in the order in which a run takes them, ahead of it, in a process of its own.

    sources -> tokenize (tokens.py) -> chunks -> ShardStore.write, shard after shard
    Position of the run -> which windows are made, and which are removed where the disk is to hold a few only

A killed run loses the shard that was being written. What a shard holds depends on the data alone: it ends with the
chunk that reaches its number of tokens, and at the end of a source.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from minimind.data.encoding import RowEncoder
from minimind.data.pairs import LengthLimit
from minimind.data.shapes import ShapeOptions
from minimind.data.sources import Place, Source
from minimind.data.streaming.order import StreamOrder, Word
from minimind.data.streaming.removal import Removal
from minimind.data.streaming.shards import LOCK, Policies, Shard, ShardStore
from minimind.data.tokens import ROWS, Chunk, tokenize
from minimind.data.worker_pool import exit_with_parent, starting_workers
from minimind.errors import MiniMindError
from minimind.locks import held

# Why a shard is not there when all have been made.
GONE = "a shard of tokenised data is gone that was there; resume the run (--from_resume 1), which makes it again"
_POLL_SECONDS = 0.2
# Added to the niceness: training comes first.
_NICENESS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordRecipe:
    """How the shards of a word are made.

    Attributes:
        folder: of the shards; its name is a hash of everything that they depend on.
        sources: in the order in which they are tokenised.
        shapes: how the rows of each source are read.
    """

    word: Word
    folder: Path
    sources: tuple[Source, ...]
    shapes: tuple[ShapeOptions, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How all shards of a run are made. It is sent to another process.

    Attributes:
        shard_tokens, window_tokens: a shard, and a window, ends when it has so many.
        seed: of the order; None: that of the data.
        rows: number of rows that the run takes.
        keep_windows: number of windows on the disk, from the one that the run is in; None: all.
        behind: number of rows before the last one that the run has asked for, which some rank may still need.
        num_workers: largest number of processes that tokenise.
        run: tells the runs that share shards apart.
    """

    words: tuple[WordRecipe, ...]
    encoder: RowEncoder
    limit: LengthLimit
    policies: Policies
    shard_tokens: int
    window_tokens: int
    seed: int | None
    rows: int
    keep_windows: int | None
    behind: int
    num_workers: int
    run: str

    def stores(self, *, verifies: bool = True) -> list[ShardStore]:
        """The folders of shards, one for each word."""
        return [
            ShardStore(one.folder, one.sources, self.policies, run=self.run, verifies=verifies) for one in self.words
        ]

    def order(self, shard_of: Callable[[int, int], Shard | None]) -> StreamOrder:
        """The order of rows, see `StreamOrder`."""
        words = [one.word for one in self.words]
        return StreamOrder(words, shard_of, window_tokens=self.window_tokens, seed=self.seed)


class _Reader:
    """The chunks of a source from a row on.

    Attributes:
        source, row: the next row is this one of this source.
        place: before it.
    """

    def __init__(self, chunks: Generator[Chunk], source: int, row: int, place: Place) -> None:
        self.source, self.row, self.place = source, row, place
        self._chunks = chunks
        self._ahead: Chunk | None = None

    def is_over(self) -> bool:
        """Whether no row follows."""
        self._ahead = self._ahead or next(self._chunks, None)
        return self._ahead is None

    def shard(self, tokens: int) -> Iterator[Chunk]:
        """Chunks up to the one that reaches so many tokens."""
        while tokens > 0 and not self.is_over():
            chunk, self._ahead = self._ahead, None
            assert chunk is not None
            self.row, self.place = self.row + chunk.counts[ROWS], Place(byte=chunk.bytes_read, number=chunk.last)
            tokens -= len(chunk.tokens)
            yield chunk

    def close(self) -> None:
        """End the processes that tokenise."""
        self._chunks.close()


class WordBuilder:
    """Makes the shards of one word. The process holds the lock of its folder."""

    def __init__(self, recipe: Recipe, word: WordRecipe, store: ShardStore) -> None:
        self._recipe, self._word, self.store = recipe, word, store
        self._reader: _Reader | None = None

    def shard(self, number: int) -> Shard | None:
        """A shard of the list, which is made if the list is that short; None behind the last one."""
        while number >= len(self.store.shards) and not self.store.ended:
            self._make_next()
        return self.store.shards[number] if number < len(self.store.shards) else None

    def ensure(self, shard: Shard) -> None:
        """Make a shard of the list again if it is no longer on the disk."""
        if not self.store.has(shard.number):
            chunks = self._read(shard.source, shard.first).shard(self._recipe.shard_tokens)
            self.store.rewrite(shard, chunks, self._recipe.limit.max_length)

    def is_whole(self) -> bool:
        """Whether all shards of the word are on the disk."""
        store = self.store
        return store.ended and all(store.has(shard.number) for shard in store.shards)

    def close(self) -> None:
        """End the processes that tokenise."""
        if self._reader is not None:
            self._reader.close()

    def _make_next(self) -> None:
        done = self.store.shards
        source, row = (done[-1].source, done[-1].first + done[-1].rows) if done else (0, 0)
        reader = self._read(source, row)
        while reader.is_over():
            if reader.source + 1 == len(self._word.sources):
                self.store.end()
                return
            reader = self._read(reader.source + 1, 0)
        row, before = reader.row, reader.place
        chunks = reader.shard(self._recipe.shard_tokens)
        shard = self.store.write(reader.source, row, chunks, self._recipe.limit.max_length)
        after = reader.place
        self.store.append(dataclasses.replace(shard, bytes=after.byte - before.byte, last=after.number))

    def _read(self, source: int, row: int) -> _Reader:
        """A reader from a row of a source on: the present one, if it is there."""
        reader = self._reader
        if reader is None or (reader.source, reader.row) != (source, row):
            self.close()
            earlier = [shard for shard in self.store.shards if shard.source == source and shard.first < row]
            place = Place(byte=sum(shard.bytes for shard in earlier), number=earlier[-1].last if earlier else 0)
            chunks = tokenize(
                self._word.sources[source],
                self._recipe.encoder,
                self._recipe.limit,
                self._word.shapes[source],
                num_workers=self._recipe.num_workers,
                skip=row,
                start=place,
            )
            self._reader = reader = _Reader(chunks, source, row, place)
        return reader


def build(recipe: Recipe, wanted: Callable[[], int], on_wait: Callable[[], object] = lambda: None) -> None:
    """Make the shards of a run, and return when it needs no further ones.

    Args:
        wanted: the last row that the run has asked for, or asks for first.
        on_wait: called now and then while another process holds the lock, or while there is enough on the disk.

    Raises:
        MiniMindError: data cannot be used.
        OSError: a file cannot be written.
        BrokenProcessPool: a tokenising process died.
    """
    with contextlib.ExitStack() as stack:
        builders = []
        # In one order in every run: two that each hold a lock that the other one waits for would wait for ever.
        for folder in sorted(word.folder for word in recipe.words):
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(folder / LOCK, on_wait))
        for word, store in zip(recipe.words, recipe.stores(), strict=True):
            store.prepare()
            builders.append(WordBuilder(recipe, word, store))
            stack.callback(builders[-1].close)
        order = recipe.order(lambda word, number: builders[word].shard(number))
        most = recipe.keep_windows
        removal = Removal([one.store for one in builders], recipe.order, most) if most is not None else None
        number = end = 0
        while end < recipe.rows:
            while removal is not None and not removal.may_hold(order, number, wanted()):
                on_wait()
                time.sleep(_POLL_SECONDS)
            window = order.window(number)
            asked = wanted()
            kept_from = asked - recipe.behind
            if removal is not None:
                removal.before(order, number, asked, kept_from)
            if window.end > kept_from:
                for part in window.parts:
                    builders[part.word].ensure(part.shard)
            if most is None and all(builder.is_whole() for builder in builders):
                return
            number, end = number + 1, window.end


class Process:
    """A process that makes shards ahead of a run.

    Args:
        wanted: the first row that the run needs.
    """

    def __init__(self, recipe: Recipe, wanted: int) -> None:
        # Not fork, as in worker_pool.py.
        context = multiprocessing.get_context("spawn")
        self._wanted = context.Value("q", wanted)
        self._process = context.Process(target=_work, args=(recipe, self._wanted), name="tokenising")
        with starting_workers():
            self._process.start()

    def wants(self, row: int) -> None:
        """Tell that the run needs rows up to this one."""
        self._wanted.value = row

    def problem(self) -> str:
        """Why it makes no further shards, if it has ended; else empty."""
        status = self._process.exitcode
        if status is None:
            return ""
        return GONE if status == 0 else f"the tokenising process died (exit status {status})"


def _work(recipe: Recipe, wanted: Any) -> None:
    """The process: an error is written where the ranks see it."""
    _step_back()
    try:
        build(recipe, lambda: int(wanted.value))
    except (MiniMindError, OSError, BrokenProcessPool) as error:
        for store in recipe.stores():
            # On a full disk the ranks see that this process has ended.
            with contextlib.suppress(OSError):
                store.fail(describe(error, recipe))


def _step_back() -> None:
    """Leave the processor to training, and the end to the parent: a signal to all processes of a run asks it to save,
    for which it may need further rows."""
    os.nice(_NICENESS)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=exit_with_parent, daemon=True).start()


def describe(error: BaseException, recipe: Recipe) -> str:
    """What to tell the user of an error of `build`."""
    if isinstance(error, OSError):
        return f"{recipe.words[0].folder.parent}: cannot write the tokenised data ({error}); try another --cache_dir"
    if isinstance(error, BrokenProcessPool):
        return "a tokenising process died, perhaps for lack of memory (--num_workers sets the number of processes)"
    return str(error)

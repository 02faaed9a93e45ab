"""The order of streamed rows: a function of the data and the seed, whatever is tokenised when.

    shards of each word -> one sequence of shards -> windows of consecutive shards -> rows, shuffled within a window

The next shard is of the word that is least far through its data, in epochs, so that the words keep their shares. In its
first pass a word's shards come in the order in which they are tokenised, later in an order of each pass. An epoch ends
when every word has been passed through so often as its weight says; a window does not go on into the next epoch.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from minimind.data.streaming.shards import Shard
from minimind.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Word:
    """A word of --data_path.

    Attributes:
        name: as it was given.
        bytes: of all its files.
        weight: passes in an epoch.
    """

    name: str
    bytes: int
    weight: Fraction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A shard in a window.

    Attributes:
        word: place of its word.
        start: number of its first row, counted over all windows.
    """

    word: int
    shard: Shard
    start: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """Consecutive shards whose rows are shuffled together.

    Attributes:
        number: from 0.
        start, end: its rows, counted over all windows.
        tokens: of its rows.
        epochs: how many are over at its start and at its end.
    """

    number: int
    parts: tuple[Part, ...]
    start: int
    end: int
    tokens: int
    epochs: tuple[Fraction, Fraction]


class _Progress:
    """How far a word is.

    Attributes:
        epochs: passes, and the share of the present one by bytes, in units of epochs.
    """

    def __init__(self, word: Word, shards: Iterator[Shard], next_pass: Callable[[int], Iterator[Shard]]) -> None:
        self._word, self._next_pass = word, next_pass
        self._pass = self._bytes = self._pairs = 0
        self._shards = shards
        self._enter(next(shards, None))

    def take(self) -> Shard:
        """The next shard; whether it ends a pass is known as soon as it is taken."""
        shard = self._next
        self._bytes += shard.bytes
        self._pairs += shard.pairs
        self._enter(next(self._shards, None))
        return shard

    @property
    def is_first_pass(self) -> bool:
        """Whether the next shard is taken for the first time."""
        return self._pass == 0

    @property
    def epochs(self) -> Fraction:
        # What is read ahead of the last row, or behind it, must not begin or delay the next pass.
        share = Fraction(min(self._bytes, self._word.bytes - 1), self._word.bytes)
        return (self._pass + share) / self._word.weight

    def _enter(self, shard: Shard | None) -> None:
        if shard is None:
            if not self._pairs:
                raise DataError(f"{self._word.name}: none of its rows can be trained on; see launch/prepare_data.py")
            self._pass, self._bytes = self._pass + 1, 0
            self._shards = self._next_pass(self._pass)
            shard = next(self._shards)
        self._next = shard


class StreamOrder:
    """The windows of a run.

    Args:
        words: of --data_path.
        shard_of: word, number -> that shard in the order of tokenising, or None behind the last one; it may wait for
            the shard to be made, or make it.
        window_tokens: a window ends with the shard that reaches so many tokens.
        seed: of the order in later passes and within windows; None: rows keep the order of the data.

    Attributes:
        read, left_out: rows of all shards up to the last window, also of shards without a row that is trained on, and
            how many of these are left out; each shard counts once.
    """

    def __init__(
        self,
        words: Sequence[Word],
        shard_of: Callable[[int, int], Shard | None],
        *,
        window_tokens: int,
        seed: int | None,
    ) -> None:
        self._words, self._shard_of, self._tokens, self._seed = words, shard_of, window_tokens, seed
        self._windows: list[Window] = []
        self._progress: list[_Progress] = []
        self.read = self.left_out = 0
        # The thread that loads batches extends the list, while others look up rows of windows that are known.
        self._lock = threading.Lock()

    def window(self, number: int) -> Window:
        """A window by its number."""
        while number >= len(self._windows):
            self._extend(number)
        return self._windows[number]

    def window_at(self, row: int) -> Window:
        """The window of a row."""
        while not self._windows or row >= self._windows[-1].end:
            self._extend(len(self._windows))
        return self._windows[bisect.bisect_right(self._windows, row, key=lambda window: window.end)]

    def rows(self, first: int, end: int) -> NDArray[np.int64]:
        """Numbers of the rows at some places of the order, (end - first,) int64."""
        found, place = [], first
        while place < end:
            window = self.window_at(place)
            order = _shuffled(window.end - window.start, self._seed, window.number)
            found.append(window.start + order[place - window.start : end - window.start])
            place = window.end
        return np.concatenate(found)

    def part_of(self, row: int) -> Part:
        """The shard that a row is in."""
        parts = self.window_at(row).parts
        return parts[bisect.bisect_right(parts, row, key=lambda part: part.start) - 1]

    def epoch_at(self, place: int) -> float:
        """How many epochs are over when so many rows have been taken."""
        window = self.window_at(max(0, place - 1))
        before, after = window.epochs
        return float(before + (after - before) * Fraction(place - window.start, window.end - window.start))

    def _extend(self, number: int) -> None:
        """Append the window of this number, unless another thread has done so."""
        with self._lock:
            if number < len(self._windows):
                return
            if not self._progress:
                self._progress = [
                    _Progress(word, self._first_pass(place), functools.partial(self._later_pass, place))
                    for place, word in enumerate(self._words)
                ]
            self._windows.append(self._next_window())

    def _next_window(self) -> Window:
        start = row = self._windows[-1].end if self._windows else 0
        before, tokens, parts = self._epochs(), 0, list[Part]()
        while not parts or (tokens < self._tokens and int(self._epochs()) == int(before)):
            word = min(range(len(self._words)), key=lambda place: (self._progress[place].epochs, place))
            is_first_pass = self._progress[word].is_first_pass
            shard = self._progress[word].take()
            if is_first_pass:
                self.read, self.left_out = self.read + shard.rows, self.left_out + shard.left_out
            if shard.pairs:
                parts.append(Part(word=word, shard=shard, start=row))
                row, tokens = row + shard.pairs, tokens + shard.tokens
        return Window(
            number=len(self._windows),
            parts=tuple(parts),
            start=start,
            end=row,
            tokens=tokens,
            epochs=(before, self._epochs()),
        )

    def _epochs(self) -> Fraction:
        return min(word.epochs for word in self._progress)

    def _first_pass(self, word: int) -> Iterator[Shard]:
        number = 0
        while (shard := self._shard_of(word, number)) is not None:
            yield shard
            number += 1

    def _later_pass(self, word: int, number: int) -> Iterator[Shard]:
        shards = list(self._first_pass(word))
        order = np.arange(len(shards))
        if self._seed is not None:
            order = np.random.default_rng((self._seed, word, number)).permutation(len(shards))
        return (shards[place] for place in order)


# A global batch may contain the end of one window and the start of the next.
@functools.lru_cache(maxsize=2)
def _shuffled(rows: int, seed: int | None, window: int) -> NDArray[np.int64]:
    return np.arange(rows) if seed is None else np.random.default_rng((seed, window)).permutation(rows)

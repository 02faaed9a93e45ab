"""What of tokenised pairs the statistics read: one array over all sources for each property.

PairTable of each source -> gather -> PairArrays -> lengths.py, equal_pairs.py

A row that stands alone is a pair whose second row is empty. A text that is split into several rows is one here, with
the length of the whole.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minimind.data.entries import TEXT
from minimind.data.table import PairTable
from minimind.data.tokens import WRONG

Indices = NDArray[np.int64]
Lengths = NDArray[np.int32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairArrays:
    """Properties of n pairs, source after source, read from their tables when they are asked for.

    Lengths are in tokens, before anything was cut; 32 bits, since there may be many pairs.

    Attributes:
        tables: the tables that the pairs are from.
        indices: of the pairs in each table.
    """

    tables: tuple[PairTable, ...]
    indices: tuple[Indices, ...]

    def __len__(self) -> int:
        return sum(map(len, self.indices))

    @functools.cached_property
    def prompts(self) -> Lengths:
        """Tokens before the answers that differ, (n,)."""
        return self._joined(lambda table: table.prompt_lengths, np.int32)

    @functools.cached_property
    def chosen(self) -> Lengths:
        """Tokens from there to the end of the chosen row, (n,)."""
        return self._joined(lambda table: table.full_lengths[::2], np.int32) - self.prompts

    @functools.cached_property
    def rejected(self) -> Lengths:
        """Tokens from there to the end of the rejected row, (n,)."""
        return self._joined(lambda table: table.full_lengths[1::2], np.int32) - self.prompts

    @functools.cached_property
    def least_limits(self) -> Lengths:
        """Smallest length limit under which each pair keeps a difference that counts, (n,)."""
        return self._joined(lambda table: table.least_limits, np.int32)

    @property
    def counted(self) -> Lengths:
        """Tokens of each row that stands alone that count, as it is trained on, (n,)."""
        return self._joined(_counted, np.int32)

    @property
    def rows(self) -> tuple[Lengths, ...]:
        """Tokens of the rows of each pair, (n,) each: of both, or of that which stands alone."""
        if all(table.is_pairs for table in self.tables):
            return self.prompts + self.chosen, self.prompts + self.rejected
        return (self.longest,)

    @functools.cached_property
    def longest(self) -> Lengths:
        """Tokens of the longer row of each pair, (n,): the limit that keeps it whole."""
        return self._joined(_longest, np.int32)

    def identity(self, part: int) -> NDArray[np.uint64]:
        """Hashes of all prompts (0), of all chosen (1) or of all rejected (2) answers, (n,)."""
        return self._joined(lambda table: table.identities[part::3], np.uint64)

    def place(self, index: int) -> str:
        """Where a pair is from, for messages: "pairs.jsonl, line 7"."""
        for table, indices in zip(self.tables, self.indices, strict=True):
            if index < len(indices):
                return table.source.place(int(table.lines[indices[index]]))
            index -= len(indices)
        raise IndexError(index)

    def _joined(self, values: Callable[[PairTable], NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
        parts = zip(self.tables, self.indices, strict=True)
        return np.concatenate([np.empty(0, dtype), *(values(table)[index].astype(dtype) for table, index in parts)])


def selected(table: PairTable) -> Indices:
    """The pairs that are trained on."""
    return table.selected[begins(table)[table.selected]]


def right(table: PairTable) -> Indices:
    """The pairs that are not wrong, however long they are."""
    return np.flatnonzero((table.cuts & WRONG == 0) & begins(table))


def begins(table: PairTable) -> NDArray[np.bool_]:
    """Which entries are not a later piece of a text, (n,)."""
    if not len(table.labels) or table.labels[0] != TEXT:
        return np.ones(len(table.lines), np.bool_)
    return table.identities[2::3] == 0


def gather(tables: Sequence[PairTable], which: Callable[[PairTable], Indices]) -> PairArrays:
    """Some pairs of all tables.

    Args:
        which: `selected` or `right`.
    """
    return PairArrays(tables=tuple(tables), indices=tuple(which(table) for table in tables))


def _longest(table: PairTable) -> NDArray[np.int64]:
    lengths = table.full_lengths.reshape(-1, 2).max(1)
    starts = np.flatnonzero(begins(table))
    if len(starts) < len(lengths):
        # The last token of a piece is the first of the next.
        lengths[starts] = np.add.reduceat(lengths - 1, starts) + 1
    return lengths


def _counted(table: PairTable) -> NDArray[np.int64]:
    # The second row of each is a token that does not count.
    return np.add.reduceat(table.mask, table.offsets[:-1:2], dtype=np.int64)

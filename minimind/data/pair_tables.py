"""The pairs of a run: the tables of all its sources as one.

    PairTable of each source -> PairTables -> PreferencePair, whose index says where it is from

An index of `tables[i]` counts the selected pairs, source after source. `PreferencePair.index` counts all tokenised
pairs, so it stays the same whatever is selected.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from minimind.data.mix import Mix
from minimind.data.sources import Source
from minimind.data.table import PairTable, PreferencePair

UNKNOWN_PART = -1


class Rows(abc.ABC):
    """What a run trains on, by index: the pairs of tables, or streamed rows (streaming/rows.py)."""

    @abc.abstractmethod
    def __getitem__(self, index: int) -> PreferencePair:
        """The pair of an index that a sampler gives."""

    @property
    @abc.abstractmethod
    def items(self) -> str:
        """As `PairTable.items`."""

    @abc.abstractmethod
    def row_of(self, index: int) -> tuple[Source, int]:
        """The source and the row's number of a pair, given by its `PreferencePair.index`."""

    def place(self, index: int) -> str:
        """Where a pair is from, for messages: "pairs.jsonl, line 7"."""
        source, row = self.row_of(index)
        return source.place(row)

    def places(self, indices: Iterable[int], most: int) -> str:
        """Where some pairs are from: "lines 3, 7, ... of a.jsonl, rows 1 of b.parquet"."""
        rows: dict[Source, set[int]] = {}
        for index in sorted(indices):
            source, row = self.row_of(index)
            rows.setdefault(source, set()).add(row)
        return ", ".join(f"{source.listed(sorted(found), most)} of {source.name}" for source, found in rows.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairRows:
    """Where n pairs are from.

    Attributes:
        sources: (n,) places of their sources among the tables.
        lines: (n,) numbers of their rows in the sources, from 1.
        parts: (n,) places among the pairs of the row, from 0; UNKNOWN_PART if some of these could not be tokenised.
        prompt_lengths: (n,) as in `PairTable`.
    """

    sources: NDArray[np.int64]
    lines: NDArray[np.int64]
    parts: NDArray[np.int64]
    prompt_lengths: NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairTables(Rows):
    """The selected pairs of several tables.

    Attributes:
        tables: one for each source, in their order.
        duplicates: pairs that are left out because an earlier one is equal.
        beyond_limit: pairs that are left out because only the first ones were asked for.
    """

    tables: tuple[PairTable, ...]
    duplicates: int = 0
    beyond_limit: int = 0

    def __len__(self) -> int:
        return int(self._selected_starts[-1])

    def __getitem__(self, index: int) -> PreferencePair:
        part = self._part(self._selected_starts, index)
        pair = self.tables[part][index - int(self._selected_starts[part])]
        return dataclasses.replace(pair, index=int(self.starts[part]) + pair.index)

    @property
    def costs(self) -> NDArray[np.float64]:
        """As `PairTable.costs`, of all selected pairs."""
        return np.concatenate([table.costs for table in self.tables])

    @property
    def packed_tokens(self) -> NDArray[np.int64]:
        """As `PairTable.packed_tokens`, of all selected pairs."""
        return np.concatenate([table.packed_tokens for table in self.tables])

    @property
    def items(self) -> str:
        return self.tables[0].items

    @property
    def mix(self) -> Mix:
        """How often an epoch takes the pairs of each table."""
        return Mix(
            sizes=tuple(len(table) for table in self.tables),
            weights=tuple(table.source.weight for table in self.tables),
        )

    @property
    def key(self) -> str:
        """Hash of everything that the arrays depend on; that of the table, if there is one only."""
        keys = [table.key for table in self.tables]
        return keys[0] if len(keys) == 1 else hashlib.sha256("\n".join(keys).encode()).hexdigest()[:24]

    @functools.cached_property
    def starts(self) -> NDArray[np.int64]:
        """(tables + 1,) where the pairs of each table begin among all tokenised pairs, and their number."""
        return np.cumsum([0, *(len(table.lines) for table in self.tables)])

    @functools.cached_property
    def _selected_starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(len(table) for table in self.tables)])

    @property
    def indices(self) -> NDArray[np.int64]:
        """(len,) `PreferencePair.index` of each selected pair."""
        return np.concatenate(
            [start + table.selected for start, table in zip(self.starts[:-1], self.tables, strict=True)]
        )

    @functools.cached_property
    def _lines_in_part(self) -> list[NDArray[np.int64]]:
        """Of each table the rows that gave pairs and more that could not be tokenised."""
        refused = [[bad.line for bad in table.bad if not bad.tokenized] for table in self.tables]
        return [np.array(lines, np.int64) for lines in refused]

    def rows_of(self, indices: NDArray[np.int64]) -> PairRows:
        """Where pairs are from, as arrays, given by their `PreferencePair.index`."""
        sources = np.searchsorted(self.starts, indices, side="right") - 1
        lines, parts, prompts = (np.zeros(len(indices), np.int64) for _ in range(3))
        for number, table in enumerate(self.tables):
            of_table = sources == number
            own = indices[of_table] - self.starts[number]
            lines[of_table] = table.lines[own]
            # Pairs of one row follow each other, and rows are in their order.
            whole = ~np.isin(table.lines[own], self._lines_in_part[number])
            parts[of_table] = np.where(whole, own - np.searchsorted(table.lines, table.lines[own]), UNKNOWN_PART)
            prompts[of_table] = table.prompt_lengths[own]
        return PairRows(sources=sources, lines=lines, parts=parts, prompt_lengths=prompts)

    def row_of(self, index: int) -> tuple[Source, int]:
        part = self._part(self.starts, index)
        table = self.tables[part]
        return table.source, int(table.lines[index - int(self.starts[part])])

    @staticmethod
    def _part(starts: NDArray[np.int64], index: int) -> int:
        return int(np.searchsorted(starts, index, side="right")) - 1

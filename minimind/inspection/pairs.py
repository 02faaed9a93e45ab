"""What of tokenised pairs the statistics read: one array over all sources for each property.

PairTable of each source -> gather -> PairArrays -> lengths.py, equal_pairs.py
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from minimind.data.table import PairTable
from minimind.data.tokens import WRONG

Indices = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairArrays:
    """Properties of n pairs, source after source. Lengths are in tokens, before anything was cut.

    Attributes:
        tables: the tables that the pairs are from.
        sources: (n,) index into `tables`.
        lines: (n,) number of the pair's row in its source.
        prompts, chosen, rejected: (n,) tokens before the answers that differ, and from there to the end of each row.
        least_limits: (n,) smallest length limit under which the pair keeps a difference that counts.
        identities: (n, 3) uint64, hashes of prompt, chosen and rejected answer.
    """

    tables: tuple[PairTable, ...]
    sources: Indices
    lines: Indices
    prompts: Indices
    chosen: Indices
    rejected: Indices
    least_limits: Indices
    identities: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def longest(self) -> Indices:
        """Tokens of the longer row of each pair, (n,): the limit that keeps it whole."""
        return self.prompts + np.maximum(self.chosen, self.rejected)

    def place(self, index: int) -> str:
        """Where a pair is from, for messages: "pairs.jsonl, line 7"."""
        return self.tables[int(self.sources[index])].source.place(int(self.lines[index]))


def selected(table: PairTable) -> Indices:
    """The pairs that are trained on."""
    return table.selected


def right(table: PairTable) -> Indices:
    """The pairs that are not wrong, however long they are."""
    return np.flatnonzero(table.cuts & WRONG == 0)


def gather(tables: Sequence[PairTable], which: Callable[[PairTable], Indices]) -> PairArrays:
    """The arrays of some pairs of all tables.

    Args:
        which: `selected` or `right`.
    """
    indices = [which(table) for table in tables]

    def joined(values: Callable[[PairTable], NDArray[np.int64]]) -> NDArray[np.int64]:
        parts = [values(table)[index] for table, index in zip(tables, indices, strict=True)]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    prompts = joined(lambda table: table.prompt_lengths)
    identities = [table.identities.reshape(-1, 3)[index] for table, index in zip(tables, indices, strict=True)]
    return PairArrays(
        tables=tuple(tables),
        sources=np.repeat(np.arange(len(tables)), [len(index) for index in indices]),
        lines=joined(lambda table: table.lines),
        prompts=prompts,
        chosen=joined(lambda table: table.full_lengths[::2]) - prompts,
        rejected=joined(lambda table: table.full_lengths[1::2]) - prompts,
        least_limits=joined(lambda table: table.least_limits),
        identities=np.concatenate(identities) if identities else np.empty((0, 3), np.uint64),
    )

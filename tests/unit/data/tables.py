"""Rows and helpers for tests of tokenised tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minimind.data import entries, tokens
from minimind.data.rows import BadRow
from minimind.data.sources.source import LINE, Source
from minimind.data.table import PairTable
from tests.conftest import conversation, pair

ROWS = (
    pair("What is the colour of the sky?", "It is blue.", "Look yourself."),
    {
        "chosen": conversation("Hello", "Good morning!", "Where is Rome?", "In Italy."),
        "rejected": conversation("Hello", "Good morning!", "Where is Rome?", "Not here."),
    },
    pair("你好吗?", "很好，谢谢。", "走开。"),
)

# Truncation to 12 tokens leaves no answer of the first row, and all of the second.
LONG_QUESTION = pair("What is the colour of the sky on a clear day in the middle of summer?", "Blue.", "Look.")
SHORT = pair("Hi", "Yo.", "No.")


def content(table: PairTable) -> list[tuple]:
    """All pairs as plain lists."""
    return [
        (
            row.chosen.tolist(),
            row.rejected.tolist(),
            row.chosen_mask.tolist(),
            row.rejected_mask.tolist(),
            row.prefix,
            int(table.lines[row.index]),
        )
        for row in (table[i] for i in range(len(table)))
    ]


def lines(table: PairTable) -> list[int]:
    """Numbers of the rows of the selected pairs."""
    return table.lines[table.selected].tolist()


def table_of(
    *pairs: tuple[int, int, int],
    bad: tuple[BadRow, ...] = (),
    counts: dict[str, int] | None = None,
    shapes: dict[str, int] | None = None,
    unused: dict[str, int] | None = None,
    scores: list[float] | None = None,
    lines: list[int] | None = None,
) -> PairTable:
    """A table of pairs, by default in lines 1, 2, ...; each is given as full length of chosen, of rejected, and cuts,
    with rows of 100 tokens at most."""
    lengths = np.array([length for pair in pairs for length in pair[:2]], np.int64)
    offsets = np.concatenate(([0], np.cumsum(np.minimum(lengths, 100)))).astype(np.int64)
    cuts = np.array([pair[2] for pair in pairs], np.uint8)
    cuts[[row.line - 1 for row in bad if row.tokenized]] |= tokens.WRONG
    return PairTable(
        source=Source(name="pairs.jsonl", files=(Path("pairs.jsonl"),), unit=LINE),
        key="",
        tokens=np.zeros(offsets[-1], np.int32),
        mask=np.ones(offsets[-1], np.uint8),
        offsets=offsets,
        full_lengths=lengths,
        prefixes=np.zeros(len(pairs), np.int64),
        lines=np.array(lines or range(1, len(pairs) + 1)),
        scores=np.array(scores or [np.nan] * len(lengths), np.float32),
        labels=np.full(len(pairs), entries.NO_LABEL, np.uint8),
        prompt_lengths=np.zeros(len(pairs), np.int64),
        least_limits=np.zeros(len(pairs), np.int64),
        identities=np.arange(3 * len(pairs), dtype=np.uint64),
        cuts=cuts,
        max_length=100,
        bad=bad,
        counts={tokens.ROWS: len(pairs) + sum(not row.tokenized for row in bad), **(counts or {})},
        shapes=shapes or {},
        unused=unused or {},
        selected=np.arange(len(pairs)),
    )

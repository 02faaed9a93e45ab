"""Rows and helpers for tests of tokenised tables."""

from __future__ import annotations

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
            row.line,
        )
        for row in (table[i] for i in range(len(table)))
    ]


def lines(table: PairTable) -> list[int]:
    return [table[index].line for index in range(len(table))]

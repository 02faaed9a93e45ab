"""Reasons of many rows: each is said once, with its number of rows and the first of them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

from minimind.data.reasons import by_reason, described
from minimind.data.rows import BadRow
from minimind.data.sources.source import LINE, Source

SOURCE = Source(name="a.jsonl", files=(Path("a.jsonl"),), unit=LINE)


def rows(*reasons: str) -> list[BadRow]:
    return [BadRow(line=line, reason=reason, tokenized=False) for line, reason in enumerate(reasons, start=1)]


def test_numbers_and_lists_may_differ_and_names_may_not():
    bad = rows("x at 1", "keys ['a', 'b']", "x at 22", "keys ['c']", "'k1' is not", "'k2' is not", "x at 3")
    assert described(SOURCE, bad, 9) == [
        "lines 1, 3, 7: x at 1", "lines 2, 4: keys ['a', 'b']", "line 5: 'k1' is not", "line 6: 'k2' is not"
    ]  # fmt: skip


def test_of_many_rows_the_first_are_named():
    assert described(SOURCE, rows(*["x"] * 8), 9) == ["lines 1, 2, 3, 4, 5, 6, 7, 8: x"]
    assert described(SOURCE, rows(*["x"] * 9), 9) == ["lines 1, 2, 3, 4, 5, 6, 7, 8, ... (9 rows): x"]


def test_of_many_reasons_the_most_frequent_are_described():
    bad = rows("a", "b", "b", "c", "c", "c", "d")
    assert described(SOURCE, bad, 2) == ["lines 4, 5, 6: c", "lines 2, 3: b", "2 rows for other reasons"]


def test_a_long_reason_is_shortened():
    (text,) = described(SOURCE, rows("x" * 10_000), 1)
    assert len(text) == len("line 1: ") + 400
    assert text.endswith("x...")


def test_memory_does_not_grow_with_the_rows():
    """Twenty thousand rows with reasons that all differ."""
    bad = (BadRow(line=number, reason=f"'k{number}' is not there", tokenized=False) for number in range(20_000))
    tracemalloc.start()
    reasons = by_reason(bad)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**21
    assert (len(reasons), reasons[0].text, reasons[0].count) == (1001, "other reasons", 20_000 - 1000)

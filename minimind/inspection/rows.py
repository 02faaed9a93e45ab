"""The rows of each source: their shapes, what is refused and why, and what the run leaves out.

PairTable as select_pairs gives it, row_messages -> describe_source -> SourceReport
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from minimind.data.messages import shown
from minimind.data.reasons import by_reason
from minimind.data.rows import BadRow
from minimind.data.shapes import shape_named
from minimind.data.sources import Content, RowError, Source
from minimind.data.table import PairTable
from minimind.data.tokens import UNPAIRED
from minimind.errors import DataError

# Reasons that are listed; the rows of the others are counted.
_LISTED = 20
# Characters of a row.
_EXCERPT = 120


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefusedRows:
    """Rows that are refused for one reason.

    Attributes:
        reason: that of the first row; in others the numbers in it differ.
        rows: their number.
        first: the first of them: "lines 3, 7, ...".
        excerpt: the beginning of the first of them; empty if it cannot be read at all.
    """

    reason: str
    rows: int
    first: str
    excerpt: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceReport:
    """The rows of one source.

    Attributes:
        name: path or name of the source.
        rows: rows that are not blank.
        pairs: pairs that they give and that are not wrong.
        selected: pairs that are used.
        shapes: title of a shape -> number of rows.
        refused: refused rows, by reason, most frequent first.
        refused_rows: number of all refused rows and pairs.
        unpaired: rows of which no two answers make a pair.
        unused: what nothing reads, e.g. a column -> number of rows, most frequent first.
        messages: what a run prints about the source at its start.
    """

    name: str
    rows: int
    pairs: int
    selected: int
    shapes: Mapping[str, int]
    refused: tuple[RefusedRows, ...]
    refused_rows: int
    unpaired: int
    unused: Mapping[str, int]
    messages: tuple[str, ...]


def describe_source(table: PairTable, pairs: int, messages: Iterable[str]) -> SourceReport:
    """What there is to say about the rows of a source.

    Args:
        pairs: number of its pairs that are not wrong.
        messages: what a run prints about it.
    """
    return SourceReport(
        name=table.source.name,
        rows=table.total_rows,
        pairs=pairs,
        selected=len(table),
        shapes={shape_named(name).title: number for name, number in table.shapes.items()},
        refused=group_reasons(table.source, table.bad),
        refused_rows=len(table.bad),
        unpaired=table.counts.get(UNPAIRED, 0),
        unused=dict(sorted(table.unused.items(), key=lambda item: -item[1])),
        messages=tuple(messages),
    )


def group_reasons(source: Source, bad: Iterable[BadRow]) -> tuple[RefusedRows, ...]:
    """Refused rows by reason, whatever the numbers in it are; most frequent first."""
    listed = by_reason(bad)[:_LISTED]
    excerpts = _excerpts(source, {one.rows[0] for one in listed})
    return tuple(
        RefusedRows(reason=one.text, rows=one.count, first=one.first(source), excerpt=excerpts.get(one.rows[0], ""))
        for one in listed
    )


def _excerpts(source: Source, numbers: set[int]) -> dict[int, str]:
    """The beginnings of some rows. The source is read again, up to the last of them."""
    found: dict[int, str] = {}
    try:
        for number, content in source.rows() if numbers else ():
            if number in numbers:
                found[number] = _beginning(content)
                if len(found) == len(numbers):
                    break
    except DataError:
        pass  # a report without excerpts is better than none
    return found


def _beginning(content: Content) -> str:
    if isinstance(content, RowError):
        return ""
    if isinstance(content, dict):
        return shown(content)
    text = " ".join(content[: 4 * _EXCERPT].decode("utf-8", "replace").split())
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}..."

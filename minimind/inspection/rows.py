"""The rows of each source: their shapes, what is refused and why, and what the run leaves out.

PairTable as select_pairs gives it, row_messages -> describe_source -> SourceReport
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from minimind.data.reasons import by_reason
from minimind.data.rows import BadRow
from minimind.data.shapes import SHAPES
from minimind.data.sources import Source
from minimind.data.table import PairTable

# Reasons that are listed; the rows of the others are counted.
_LISTED = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefusedRows:
    """Rows that are refused for one reason.

    Attributes:
        reason: that of the first row; in others the numbers in it differ.
        rows: their number.
        first: the first of them: "lines 3, 7, ...".
    """

    reason: str
    rows: int
    first: str


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
        messages: what a run prints about the source at its start.
    """

    name: str
    rows: int
    pairs: int
    selected: int
    shapes: Mapping[str, int]
    refused: tuple[RefusedRows, ...]
    refused_rows: int
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
        shapes={SHAPES[name].title: number for name, number in table.shapes.items()},
        refused=group_reasons(table.source, table.bad),
        refused_rows=len(table.bad),
        messages=tuple(messages),
    )


def group_reasons(source: Source, bad: Iterable[BadRow]) -> tuple[RefusedRows, ...]:
    """Refused rows by reason, whatever the numbers in it are; most frequent first."""
    return tuple(
        RefusedRows(reason=one.text, rows=one.count, first=one.first(source)) for one in by_reason(bad)[:_LISTED]
    )

"""Reads a table with separators: every value is the text of its cell.

stream -> read_csv -> (number, column -> text)
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from minimind.data.sources.content import separator_of
from minimind.data.sources.json_text import ROW_BYTES, RowError, too_long

# Largest number of columns of any table.
MOST_COLUMNS = 10_000


class BadTableError(ValueError):
    """Why a table cannot be read any further. The caller knows the file and adds it."""


class _Lines:
    """The lines of a table. A quoted cell may have many, and a row of all lines of a file would take all memory.

    Attributes:
        size: characters of the lines of the present row; the reader of the rows sets it back.
    """

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text, self.size = text, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._text.readline(ROW_BYTES)
        if not line:
            raise StopIteration
        self.size += len(line)
        if self.size >= ROW_BYTES:
            raise csv.Error(f"{too_long()}; or a quote in it does not end")
        return line


def read_csv(stream: io.BufferedReader[Any]) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """Yield the number (from 1, without the header) and the cells of each row.

    Values stay texts: an answer may be `007`, `null` or `4`.

    Raises:
        BadTableError: the header cannot be used, or a row is not UTF-8, or a quoted cell does not end.
    """
    separator = separator_of(stream.peek()) or ","
    lines = _Lines(io.TextIOWrapper(stream, "utf-8", newline=""))
    rows = csv.reader(lines, delimiter=separator, strict=True)
    number = 0
    try:
        header = next(rows)
        if len(header) > MOST_COLUMNS:
            raise BadTableError(f"it has {len(header)} columns; {MOST_COLUMNS} are the most")
        lines.size = 0
        for cells in rows:
            lines.size = 0
            if not cells:
                continue
            number += 1
            if len(cells) == len(header):
                yield number, dict(zip(header, cells, strict=True))
            else:
                yield number, RowError(f"it has {len(cells)} cells, the header {len(header)}")
    except csv.Error as error:
        hint = "; a quote within a quoted cell is written twice" if "expected after" in str(error) else ""
        raise BadTableError(f"row {number + 1}: {error}{hint}") from error
    except UnicodeDecodeError as error:
        raise BadTableError(f"not UTF-8 after row {number} ({error.reason}); save the table as UTF-8") from error

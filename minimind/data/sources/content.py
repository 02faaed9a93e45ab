"""Tells what a file is by its first bytes; its name plays no part.

first bytes -> kind_of -> Kind, or the reason why the file holds no rows
"""

from __future__ import annotations

import csv
import enum
import io
import itertools
import re
from collections.abc import Mapping

from minimind.data.sources.json_text import ROW_BYTES
from minimind.data.sources.streams import HEAD_BYTES


class Kind(enum.Enum):
    """What a file is, in words for messages."""

    LINES = "JSON lines"
    ARRAY = "a JSON array"
    OBJECTS = "JSON objects over several lines"
    CSV = "a table with separators"
    PARQUET = "parquet"
    ARROW_FILE = "an Arrow file"
    ARROW_STREAM = "an Arrow stream"


class UnknownContentError(ValueError):
    """Why a file holds no rows that can be read. The caller knows the file and adds it."""


_BINARY = {
    b"PAR1": Kind.PARQUET,
    b"ARROW1": Kind.ARROW_FILE,
    b"\xff\xff\xff\xff": Kind.ARROW_STREAM,
}
# Files that are given by mistake, with what to do instead.
_MISTAKES: Mapping[re.Pattern[bytes], str] = {
    re.compile(pattern, re.DOTALL): problem
    for pattern, problem in {
        rb"PK\x03\x04": "a zip archive (or an Excel file); unpack it, or save the table as CSV",
        rb".{257}ustar": "a tar archive; unpack it",
        rb"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it",
        rb"Rar!": "a rar archive; unpack it",
        rb"%PDF-": "a PDF",
        rb"FEA1": "an old Feather file; write it as parquet",
        rb"SQLite format 3": "an SQLite database; write the table as parquet or CSV",
        rb"PARE": "an encrypted parquet file; decrypt it",
        rb"version https://git-lfs": "a Git LFS pointer instead of the data; run `git lfs pull` where it is from",
        rb"\s*<(?i:!doctype|html|\?xml)": "a web page or XML; the download may have failed",
        rb"---\s*\n": "YAML or Markdown",
    }.items()
}
_SEPARATORS = ",\t;"
# A line that is a JSON object.
_OBJECT = re.compile(rb'\{\s*"')
_CONTROL = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")
# Lines of the beginning that are looked at, and the longest name of a column.
_LINES, _NAME_LENGTH = 20, 100


def kind_of(head: bytes) -> Kind:
    """What the file is that begins with these bytes: unpacked, in UTF-8, without BOM.

    Raises:
        UnknownContentError: nothing that holds rows.
    """
    for magic, kind in _BINARY.items():
        if head.startswith(magic):
            return kind
    for pattern, problem in _MISTAKES.items():
        if pattern.match(head):
            raise UnknownContentError(problem)
    if re.match(rb"(?:[^\0]\0){4}|(?:\0[^\0]){4}", head):
        raise UnknownContentError("text in UTF-16 without a BOM; save it as UTF-8")
    lines = [line.strip() for line in head.split(b"\n")[:_LINES] if line.strip(b"\xef\xbb\xbf \t\r")]
    if not lines:
        raise UnknownContentError("empty")
    if lines[0].startswith(b"["):
        return Kind.ARRAY
    if lines[0].startswith(b"{"):
        over_lines = len(lines) > 1 and not lines[0].endswith(b"}") and not lines[1].startswith(b"{")
        return Kind.OBJECTS if over_lines else Kind.LINES
    if b"\0" in head or _CONTROL.search(lines[0]):
        raise UnknownContentError("binary")
    # A first line that is damaged is a bad row, if the others are objects. A few such lines may be in cells of a table.
    others = [_OBJECT.match(line) is not None for line in lines[1:]]
    if 2 * sum(others) > len(others):
        return Kind.LINES
    if separator_of(head):
        return Kind.CSV
    if any(line.startswith(b"{") for line in lines):
        return Kind.LINES
    shown = lines[0][:40].decode("utf-8", "replace")
    raise UnknownContentError(f"neither JSON nor a table: it begins with {shown!r}{_no_table(lines[:2])}")


def _no_table(lines: list[bytes]) -> str:
    """Why a file that begins with these lines is no table, if it resembles one."""
    if b"|" in lines[0]:
        return "; the cells of a table are separated by a comma, a tab or a semicolon"
    if any(separator.encode() in line for separator in _SEPARATORS for line in lines):
        return (
            "; the first line of a table names each column, with different names, and each row has as many cells, "
            "quotes directly beside the separators"
        )
    return ""


def separator_of(head: bytes) -> str | None:
    """The character that separates the cells of a table that begins like this; None if it is no table."""
    # The csv module has one limit for the whole process, and by default it is shorter than a long answer.
    csv.field_size_limit(ROW_BYTES)
    text = head.decode("utf-8", "replace")
    most, found = 1, None
    for separator in _SEPARATORS:
        try:
            records = list(itertools.islice(csv.reader(io.StringIO(text, newline=""), delimiter=separator), 3))
        except csv.Error:
            continue
        if len(head) >= HEAD_BYTES and len(records) < 3:
            # The last record goes on behind the beginning that is looked at.
            records = records[:-1] or [records[0][:-1]]
        if len(records[0]) > most and _is_table(records):
            most, found = len(records[0]), separator
    return found


def _is_table(records: list[list[str]]) -> bool:
    """Whether the first record has different names of columns, and the next one, if there is one, as many cells."""
    names = records[0]
    # The index that pandas writes has no name.
    named = all(names[1:]) and all(len(name) <= _NAME_LENGTH for name in names) and len(set(names)) == len(names)
    return named and all(len(record) == len(names) for record in records[:2])

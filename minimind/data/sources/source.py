"""One source of preference rows: a file, or files that are read one after the other.

path -> open_source -> Source -> rows -> (number, content): bytes of a JSON value, or a row that has values already
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import itertools
import stat
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from minimind.data.sources.content import Kind, UnknownContentError, kind_of
from minimind.data.sources.csv_rows import BadTableError, read_csv
from minimind.data.sources.json_text import CutOffError, RowError, read_lines, read_values
from minimind.data.sources.streams import (
    OnRead,
    beginning_of,
    ignore,
    open_stream,
    open_stream_at,
    unpacked_file,
)
from minimind.errors import DataError

# A row as a source yields it: the bytes of one JSON value; the values of its columns; or why it cannot be read.
Content = bytes | dict[str, Any] | RowError

LINE, ROW = "line", "row"
TAKEN = "JSON lines, a JSON array, CSV, parquet or Arrow, packed or not"


class Place(NamedTuple):
    """A place between two rows of a source.

    Attributes:
        byte: bytes of its files before the place.
        number: of the last row before it.
    """

    byte: int
    number: int


START = Place(byte=0, number=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Preference rows that are counted together.

    Attributes:
        name: what messages call it: a path, or the name of a data set with its split.
        files: what is read, in this order.
        unit: what the numbers of rows count, from 1: LINE or ROW.
        word: what the user gave that it is a part of, e.g. a pattern; empty for a source made in code.
        weight: how often an epoch takes each of its pairs.
        note: where the files are from, and what beside them is not read; empty if nothing.
    """

    name: str
    files: tuple[Path, ...]
    unit: str
    word: str = ""
    weight: Fraction = Fraction(1)
    note: str = ""

    @property
    def has_places(self) -> bool:
        """Whether rows can be read from a place on: the files are lines of JSON, not packed or in another encoding."""
        return all(kind is Kind.LINES and start is not None for kind, start in map(_beginning, self.files))

    def rows(self, on_read: OnRead = ignore, start: Place = START) -> Iterator[tuple[int, Content]]:
        """Yield the number and the content of each row that is not blank.

        Args:
            on_read: called for each block of a file, or line, with the number of its bytes. If the source has places,
                the sum of these bytes before a row is yielded is that of the place behind it.
            start: the place before the first row; another than the start only if the source has places.

        Raises:
            DataError: a file cannot be read, is damaged or holds no rows.
        """
        byte, number = start
        for file in self.files:
            if byte and byte >= (size := file.stat().st_size):
                byte -= size
                continue
            for own, content in _read(file, on_read, Place(byte, number)):
                # Rows of several files are counted through, those of one have its numbers.
                number = number + 1 if len(self.files) > 1 else own
                yield number, content
            byte = 0
        if not number:
            raise DataError(f"{self.name}: {self._without_a_row()}")

    def _without_a_row(self) -> str:
        if len(self.files) > 1:
            return f"{len(self.files)} files without a row"
        kind = kind_of_file(self.files[0])
        header = "; its first line is taken for the names of columns" if kind is Kind.CSV else ""
        return f"{kind.value} without a row{header}"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def weight_suffix(self) -> str:
        """The weight as it was given, with its colon; empty without one."""
        return "" if self.weight == 1 else f":{self.word.rpartition(':')[2]}"

    @property
    def short_name(self) -> str:
        """The name without folders, for the console."""
        return Path(self.name).name

    def row(self, number: int) -> str:
        """A row in a message that names the source: "line 7"."""
        return f"{self.unit} {number}"

    def place(self, number: int) -> str:
        """A row in any other message: "pairs.jsonl, line 7"."""
        return f"{self.name}, {self.row(number)}"

    def listed(self, numbers: Iterable[int], most: int) -> str:
        """The first of some rows: "lines 3, 7, ..."."""
        shown = [str(number) for number in itertools.islice(numbers, most + 1)]
        return f"{self.unit}s {', '.join(shown[:most])}{', ...' if len(shown) > most else ''}"


def open_source(path: Path) -> Source:
    """The source of one file.

    Raises:
        DataError: there is no such file, it cannot be read, or holds no rows.
    """
    return Source(name=str(path), files=(path,), unit=LINE if kind_of_file(path) is Kind.LINES else ROW)


def open_split(name: str, files: tuple[Path, ...], note: str = "") -> Source:
    """The source of files whose rows are counted through.

    Raises:
        DataError: see `open_source`.
    """
    kinds = [kind_of_file(path) for path in files]
    return Source(name=name, files=files, unit=LINE if kinds == [Kind.LINES] else ROW, note=note)


def kind_of_file(path: Path) -> Kind:
    """What a file is.

    Raises:
        DataError: see `open_source`.
    """
    return _beginning(path)[0]


def _beginning(path: Path) -> tuple[Kind, int | None]:
    """What a file is, and where its content begins; None if it has other bytes than its content.

    Raises:
        DataError: see `open_source`.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        what = "no file matches the pattern" if glob.has_magic(str(path)) else "no such preference file"
        raise DataError(f"{path}: {what}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        # A pipe could be read once only, and a device has no end.
        raise DataError(f"{path}: is {'a folder' if stat.S_ISDIR(mode) else 'a device or a pipe'}, not a file")
    head, start = beginning_of(path)
    try:
        return kind_of(head), start
    except UnknownContentError as error:
        raise DataError(f"{path}: {error}; data files are {TAKEN}") from error


def _read(path: Path, on_read: OnRead, start: Place) -> Iterator[tuple[int, Content]]:
    """The rows of a file, with their numbers in it; `start` is a place in this file."""
    kind, first = _beginning(path)
    try:
        with contextlib.ExitStack() as stack:
            rows: Iterator[tuple[int, Content]]
            if kind in (Kind.PARQUET, Kind.ARROW_FILE, Kind.ARROW_STREAM):
                # Imported here, since JSON needs no pyarrow.
                from minimind.data.sources.arrow_rows import read_arrow

                unpacked = stack.enter_context(unpacked_file(path))
                scale = path.stat().st_size / max(1, unpacked.stat().st_size)
                rows = read_arrow(unpacked, kind, lambda number: on_read(round(scale * number)))
            elif kind is Kind.LINES and first is not None:
                # Lines are counted, not blocks, so that places are exact.
                if not start.byte:
                    on_read(first)
                stream = stack.enter_context(open_stream_at(path, max(first, start.byte)))
                rows = read_lines(stream, on_read, before=start.number if start.byte else 0)
            else:
                stream = stack.enter_context(open_stream(path, on_read))
                if kind is Kind.CSV:
                    rows = read_csv(stream)
                elif kind is Kind.LINES:
                    rows = read_lines(stream)
                else:
                    rows = read_values(stream, in_array=kind is Kind.ARRAY)
            yield from rows
    except (BadTableError, CutOffError) as error:
        raise DataError(f"{path}: {kind.value}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error})") from error

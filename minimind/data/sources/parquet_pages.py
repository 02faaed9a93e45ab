"""How the texts of a parquet file are stored: read from the headers of its pages, before pyarrow unpacks any.

chunk of a column in a row group -> page headers -> read_chunk -> Chunk: how they store texts

A page that refers to a dictionary may repeat a long text a million times, so it must be read as a dictionary. pyarrow
then keeps every text of plain pages until the row group ends. So what is stored plainly must be read plainly. Metadata
do not prove which pages follow; the headers, which pyarrow itself goes by, do.
"""

from __future__ import annotations

import dataclasses
import enum
import io
from collections.abc import Iterator
from typing import Any, BinaryIO, TypeVar

from minimind.data.sources.csv_rows import BadTableError

# Numbers of the format: https://github.com/apache/parquet-format, parquet.thrift.
_DICTIONARY_PAGE = 2
_TYPE, _SIZE, _PACKED_SIZE, _DATA, _DATA_V2 = 1, 2, 3, 5, 8
_ENCODING, _ENCODING_V2 = 2, 4
_PLAIN_ENCODINGS = frozenset({0, 6})  # PLAIN, DELTA_LENGTH_BYTE_ARRAY: all bytes of each text are there
_DICTIONARY_ENCODINGS = frozenset({2, 8})
# Most headers, and the longest: it may hold a smallest and a largest text.
_HEADER_BYTES = (2**10, 2**20)
# Structures of headers are nested three deep.
_DEPTH = 8

Value = TypeVar("Value", int, dict[int, Any])


class Storage(enum.Enum):
    """How the pages of a column's chunk store its texts."""

    PLAIN = "each text by itself"
    DICTIONARY = "as numbers of a dictionary"
    FALLBACK = "as numbers of a dictionary, and from some page on each by itself: the dictionary became too large"
    OTHER = "in another way"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
    """A column's texts in one row group.

    Attributes:
        storage: how its pages store them.
        dictionary_bytes: size of the dictionary, unpacked; 0 if there is none.
    """

    storage: Storage
    dictionary_bytes: int


def read_chunk(file: BinaryIO, chunk: Any) -> Chunk:
    """How a chunk stores its texts.

    Args:
        file: the parquet file.
        chunk: its `pyarrow.parquet.ColumnChunkMetaData`.

    Raises:
        BadTableError: a page header is damaged.
    """
    plain, dictionary_bytes, known = [], 0, True
    for fields in _headers(file, chunk):
        if fields[_TYPE] == _DICTIONARY_PAGE:
            dictionary_bytes += _field(fields, _SIZE, 0)
            continue
        encoding_v2 = _field(_field(fields, _DATA_V2, {}), _ENCODING_V2, -1)
        encoding = _field(_field(fields, _DATA, {}), _ENCODING, encoding_v2)
        plain.append(encoding in _PLAIN_ENCODINGS)
        known &= plain[-1] or encoding in _DICTIONARY_ENCODINGS
    if all(plain):
        storage = Storage.PLAIN
    elif not known or plain != sorted(plain):
        storage = Storage.OTHER
    else:
        storage = Storage.FALLBACK if any(plain) else Storage.DICTIONARY
    return Chunk(storage=storage, dictionary_bytes=dictionary_bytes)


def _headers(file: BinaryIO, chunk: Any) -> Iterator[dict[int, Any]]:
    """The header of each page: number of each field -> its value."""
    first = chunk.dictionary_page_offset
    place = chunk.data_page_offset if first is None or first <= 0 else min(first, chunk.data_page_offset)
    end = place + chunk.total_compressed_size
    while place < end:
        for size in _HEADER_BYTES:
            file.seek(place)
            header = io.BytesIO(file.read(size))
            try:
                fields = _structure(header)
                break
            except (ValueError, IndexError) as error:
                problem = repr(error)
        else:
            raise BadTableError(f"the file is damaged: no page header at byte {place} ({problem})")
        if _field(fields, _PACKED_SIZE, -1) < 0 or _field(fields, _TYPE, -1) < 0:
            raise BadTableError(f"the file is damaged: the page at byte {place} has no size")
        yield fields
        place += header.tell() + fields[_PACKED_SIZE]


def _field(fields: dict[int, Any], number: int, default: Value) -> Value:
    """The value of a field, or the default.

    Raises:
        BadTableError: the value is not of the default's type.
    """
    value = fields.get(number, default)
    if not isinstance(value, type(default)):
        raise BadTableError(f"the file is damaged: field {number} of a page header is of another type")
    return value


def _structure(stream: io.BytesIO, depth: int = 0) -> dict[int, Any]:
    """A structure of Thrift's compact protocol: number of each field -> its value.

    Raises:
        ValueError, IndexError: it is damaged.
    """
    if depth > _DEPTH:
        raise ValueError("nested too deeply")
    fields: dict[int, Any] = {}
    number = 0
    while head := stream.read(1)[0]:
        number = number + (head >> 4) if head >> 4 else _signed(stream)
        fields[number] = _value(stream, head & 15, depth)
    return fields


def _value(stream: io.BytesIO, kind: int, depth: int) -> Any:
    if kind in (1, 2):
        return kind == 1
    if kind == 3:
        return stream.read(1)[0]
    if kind in (4, 5, 6):
        return _signed(stream)
    if kind in (7, 8):
        size = 8 if kind == 7 else _unsigned(stream)
        value = stream.read(size)
        if len(value) < size:
            raise ValueError("cut off")
        return value
    if kind == 12:
        return _structure(stream, depth + 1)
    raise ValueError(f"type {kind}, which page headers do not have")


def _unsigned(stream: io.BytesIO) -> int:
    value = 0
    for shift in range(0, 64, 7):
        byte = stream.read(1)[0]
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("a number of more than 64 bits")


def _signed(stream: io.BytesIO) -> int:
    """Zigzag: 0, -1, 1, -2, ..."""
    value = _unsigned(stream)
    return value >> 1 ^ -(value & 1)

"""Checks the messages of an Arrow file before pyarrow reads it: complete, and not much larger when unpacked.

    file -> message after message: head, metadata (a flatbuffer), body -> check_messages -> nothing, or an error

A compressed buffer begins with its unpacked size. pyarrow allocates that many bytes, whatever it is.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from minimind.data.sources.streams import FREE_BYTES, RATIO

ARROW_MAGIC = b"ARROW1"
# Where the messages of an Arrow file begin: behind the magic bytes, at a multiple of eight.
FILE_START = 8
_METADATA_BYTES = 2**25
_BATCH_BYTES = 2**31
# Arrow's format/Message.fbs: fields of the tables Message and RecordBatch, values of Message.header_type, and the field
# of DictionaryBatch that holds a RecordBatch.
_HEADER_TYPE, _HEADER, _BODY_LENGTH = 1, 2, 3
_BUFFERS, _COMPRESSION = 2, 3
_DICTIONARY_BATCH, _RECORD_BATCH, _DICTIONARY_DATA = 2, 3, 1


class BadMessageError(ValueError):
    """What is wrong with an Arrow file. The caller knows the file and adds it."""


def check_messages(path: Path, *, is_file: bool) -> None:
    """Walk over all messages.

    Args:
        is_file: the file format, which has magic bytes at both ends; otherwise the stream format.

    Raises:
        BadMessageError: the file is damaged or ends too early, or a batch unpacks to too much.
    """
    size = path.stat().st_size
    allowed = min(_BATCH_BYTES, FREE_BYTES + RATIO * size)
    with path.open("rb") as file:
        if is_file:
            file.seek(max(0, size - len(ARROW_MAGIC)))
            if size < 2 * FILE_START or file.read() != ARROW_MAGIC:
                raise BadMessageError("the file is incomplete: its end is missing")
        try:
            _walk(file, FILE_START if is_file else 0, size, allowed)
        except (struct.error, OverflowError) as error:
            raise BadMessageError(f"the file is damaged ({error})") from error


def _walk(file: BinaryIO, place: int, size: int, allowed: int) -> None:
    while place + 8 <= size:
        file.seek(place)
        mark, length = struct.unpack("<Ii", file.read(8))
        if mark != 0xFFFFFFFF or not 0 <= length <= _METADATA_BYTES:
            raise BadMessageError(f"the file is damaged at byte {place}")
        if length == 0:
            return
        metadata = file.read(length)
        body = place + 8 + length
        message = _Table(metadata, struct.unpack_from("<I", metadata)[0])
        unpacked = _unpacked_bytes(file, message, body)
        if unpacked > allowed:
            raise BadMessageError(
                f"a batch of its rows unpacks to {unpacked >> 20} MiB, and {allowed >> 20} MiB are the most for this "
                "file; write it with smaller batches"
            )
        place = body + message.number(_BODY_LENGTH, "<q")
        if place < body:
            raise BadMessageError(f"the file is damaged at byte {body}")
    # Every writer ends with a mark, which tells a complete file from one that was cut between two messages.
    raise BadMessageError("the file is incomplete: its end is missing")


def _unpacked_bytes(file: BinaryIO, message: _Table, body: int) -> int:
    """Unpacked size of the compressed buffers of a message; 0 if it has none."""
    kind, batch = message.number(_HEADER_TYPE, "<B"), message.table(_HEADER)
    if kind == _DICTIONARY_BATCH and batch is not None:
        batch = batch.table(_DICTIONARY_DATA)
    elif kind != _RECORD_BATCH:
        return 0
    if batch is None or batch.place(_COMPRESSION) is None:
        return 0
    total = 0
    for start, length in batch.pairs(_BUFFERS):
        if length >= 8:
            file.seek(max(0, body + start))
            # -1 says that a buffer is not compressed.
            total += max(0, struct.unpack("<q", file.read(8))[0])
    return total


class _Table:
    """A table of a flatbuffer: fields by their number in the schema, each present or not.

    Args:
        data: the flatbuffer.
        start: where the table begins.
    """

    def __init__(self, data: bytes, start: int) -> None:
        self._data, self._start = data, start

    def place(self, field: int) -> int | None:
        """Where a field's value is; None if the table has none."""
        fields = self._start - struct.unpack_from("<i", self._data, self._start)[0]
        if 4 + 2 * field >= struct.unpack_from("<H", self._data, fields)[0]:
            return None
        offset: int = struct.unpack_from("<H", self._data, fields + 4 + 2 * field)[0]
        return self._start + offset if offset else None

    def number(self, field: int, form: str) -> int:
        """A number; 0 if the table has none."""
        place = self.place(field)
        return 0 if place is None else int(struct.unpack_from(form, self._data, place)[0])

    def table(self, field: int) -> _Table | None:
        """A table within this one."""
        place = self.place(field)
        return None if place is None else _Table(self._data, self._pointed(place))

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """A vector of structures of two 64-bit numbers."""
        place = self.place(field)
        if place is None:
            return []
        start = self._pointed(place)
        (count,) = struct.unpack_from("<I", self._data, start)
        if 16 * count > len(self._data):
            raise BadMessageError("the file is damaged: a list of buffers is longer than its message")
        return [struct.unpack_from("<qq", self._data, start + 4 + 16 * index) for index in range(count)]

    def _pointed(self, place: int) -> int:
        return place + int(struct.unpack_from("<I", self._data, place)[0])

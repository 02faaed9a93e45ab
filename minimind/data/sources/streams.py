"""Bytes of a file as readers want them: unpacked, and UTF-8 whatever Unicode encoding the file has.

    file -> gzip, zstd, xz, bz2 if packed -> UTF-16 or UTF-32 by its BOM -> open_stream -> buffered bytes without BOM

Memory is constant. A packed file may unpack to `FREE_BYTES` and beyond that to `RATIO` times its size: more is no text.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from minimind.errors import DataError

RATIO, FREE_BYTES = 500, 2**28
# What `peek` shows of a longer file.
HEAD_BYTES = _BUFFER = 2**20
# Memory that an xz file may ask for; preset 9 needs 65 MiB.
_XZ_MEMORY = 2**28

_PACKED = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd"),
    "xz": re.compile(rb"\xfd7zXZ\0"),
    "bz2": re.compile(rb"BZh[1-9]1AY&SY"),
}
# The BOM of UTF-32 in little-endian order begins with that of UTF-16.
_ENCODINGS = {
    codecs.BOM_UTF8: None,
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}

Read = Callable[[int], bytes]
# Called for each block that is read of a file, with the number of its bytes.
OnRead = Callable[[int], object]


class _Raw(io.RawIOBase):
    """The stream behind a buffer: whatever goes wrong below becomes a DataError that names the file.

    Args:
        read: gives up to n bytes; none at the end.
        limit: largest number of bytes; None for a file that is not packed.
        below: closed with this stream.
    """

    def __init__(self, path: Path, read: Read, limit: int | None, below: IO[bytes]) -> None:
        self._path, self._read, self._limit, self._below, self._done = path, read, limit, below, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        filled = 0
        # A full buffer at each call, so that `peek` shows as much as there is.
        while filled < len(buffer):
            try:
                data = self._read(len(buffer) - filled)
            except (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeError, MemoryError) as error:
                raise DataError(f"{self._path}: cannot read the file; it is damaged or incomplete ({error})") from error
            if not data:
                break
            buffer[filled : filled + len(data)] = data
            filled += len(data)
        self._done += filled
        if self._limit is not None and self._done > self._limit:
            raise DataError(
                f"{self._path}: unpacks to more than {self._limit >> 20} MiB, over {RATIO} times its size, which "
                "preference data do not; if it is right, unpack it and give the result"
            )
        return filled

    def close(self) -> None:
        self._below.close()
        super().close()


def ignore(number: int) -> None:
    """An `OnRead` that does nothing."""


def open_stream(path: Path, on_read: OnRead = ignore) -> io.BufferedReader[Any]:
    """Open a file for reading its content.

    Args:
        on_read: called for each block of the file itself, as it is packed.

    Raises:
        DataError: here and while reading: the file cannot be read, is damaged, or unpacks to too much.
    """
    return _open(path, on_read)[0]


def beginning_of(path: Path) -> tuple[bytes, int | None]:
    """The beginning of a file's content, and its place in the file; None if the file has other bytes than its content.

    Raises:
        DataError: see `open_stream`.
    """
    stream, start = _open(path, ignore)
    with stream:
        return stream.peek(), start


def _open(path: Path, on_read: OnRead) -> tuple[io.BufferedReader[Any], int | None]:
    """A stream as of `open_stream`, and the place of `beginning_of`."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error.strerror or error})") from error

    def read(size: int) -> bytes:
        block = file.read(size)
        on_read(len(block))
        return block

    stream = _buffered(path, read, file)
    if name := packed_as(stream.peek()):
        limit = FREE_BYTES + RATIO * path.stat().st_size
        stream = _buffered(path, _unpacked(name, stream), stream, limit)
        if packed_as(stream.peek()):
            raise DataError(f"{path}: the file is packed twice; unpack it once")
    head = stream.peek()
    bom, encoding = next((one for one in _ENCODINGS.items() if head.startswith(one[0])), (b"", None))
    stream.read(len(bom))
    if encoding is not None:
        stream = _buffered(path, _as_utf8(stream, encoding), stream)
    return stream, None if name or encoding else len(bom)


def open_stream_at(path: Path, place: int) -> io.BufferedReader[Any]:
    """Open a file with the bytes of its content for reading from a place on.

    Raises:
        DataError: see `open_stream`.
    """
    try:
        file = path.open("rb")
        file.seek(place)
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error.strerror or error})") from error
    return _buffered(path, file.read, file)


def _buffered(path: Path, read: Read, below: IO[bytes], limit: int | None = None) -> io.BufferedReader[Any]:
    return io.BufferedReader(_Raw(path, read, limit, below), _BUFFER)


def packed_as(head: bytes) -> str | None:
    """How a file that begins like this is packed; None if it is not."""
    return next((name for name, magic in _PACKED.items() if magic.match(head)), None)


@contextlib.contextmanager
def unpacked_file(path: Path) -> Iterator[Path]:
    """The file itself, or an unpacked copy of a packed file, for readers that must jump within it.

    Raises:
        DataError: see `open_stream`; or the copy cannot be written.
    """
    with path.open("rb") as file:
        packed = packed_as(file.read(16))
    if not packed:
        yield path
        return
    with contextlib.ExitStack() as stack:
        try:
            copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="minimind-"))
            with open_stream(path) as stream:
                shutil.copyfileobj(stream, copy, _BUFFER)
            copy.flush()
        except OSError as error:
            raise DataError(f"{path}: cannot write an unpacked copy of it ({error}); see TMPDIR") from error
        yield Path(copy.name)


def _unpacked(name: str, stream: IO[bytes]) -> Read:
    if name == "gzip":
        return gzip.GzipFile(fileobj=stream).read
    if name == "bz2":
        return bz2.BZ2File(stream).read
    if name == "xz":
        return _read_xz(stream)
    # Imported here, since most files need no pyarrow. Its stream knows an incomplete zstd file, which others do not.
    import pyarrow

    read: Read = pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, "r"), "zstd").read
    return read


def _read_xz(stream: IO[bytes]) -> Read:
    """`lzma.LZMAFile` cannot bound the memory that a file asks for."""
    state = lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY)

    def read(size: int) -> bytes:
        nonlocal state
        while True:
            if state.eof:
                # Another xz stream may follow, behind padding of zeros.
                rest = (state.unused_data or stream.read(_BUFFER)).lstrip(b"\0")
                if not rest:
                    return b""
                state = lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY)
            else:
                rest = stream.read(_BUFFER) if state.needs_input else b""
                if state.needs_input and not rest:
                    raise EOFError("the end of the packed data is missing")
            if data := state.decompress(rest, size):
                return data

    return read


def _as_utf8(stream: IO[bytes], encoding: str) -> Read:
    decoder = codecs.getincrementaldecoder(encoding)()

    def read(size: int) -> bytes:
        # A UTF-16 unit of two bytes becomes at most three bytes.
        block = stream.read(max(size // 3, 4))
        text = decoder.decode(block, final=not block)
        while block and not text:
            block = stream.read(4)
            text = decoder.decode(block, final=not block)
        return text.encode("utf-8")

    return read

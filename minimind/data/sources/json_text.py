"""Splits JSON text into rows and decodes them.

    stream -> read_lines, read_values -> (number, bytes of one JSON value) -> parse_json -> value

`parse_json` is separate because the main process splits and worker processes parse. Memory is bounded: a row longer
than `ROW_BYTES` is passed over and becomes a RowError.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

# Longest row, in bytes. It holds about four million tokens.
ROW_BYTES = 2**24
# Deepest nesting of a file of several values. Python's parser refuses less than that.
_DEPTH = 100_000
# Most opening brackets of a row; a pair has dozens. A second passes for this many.
_BRACKETS = 1_000_000
_CHUNK = 2**20
# A whole string, or the next character with a meaning for the structure.
_NEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["{}\[\],]', re.DOTALL)
# Within a value commas have none.
_NEXT_WITHIN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["{}\[\]]', re.DOTALL)
_STRING_REST = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
# A byte order mark alone also makes a blank line.
_BLANK = b"\xef\xbb\xbf \t\r\n"


class RowError(ValueError):
    """The reason why one row cannot be used. The caller knows the file and the line and adds them."""


class CutOffError(ValueError):
    """Why it cannot be told where rows end, e.g. a text that is cut off. The caller knows the file and adds it."""


def too_long() -> RowError:
    """The error of a row above the limit."""
    return RowError(f"the row is longer than {ROW_BYTES >> 20} MiB")


def read_lines(
    stream: BinaryIO, on_line: Callable[[int], object] = lambda size: None, *, before: int = 0
) -> Iterator[tuple[int, bytes | RowError]]:
    """Yield the number (from 1) and the content of each line that is not blank.

    Args:
        on_line: called with the bytes of each line, also of blank ones, before the line is yielded.
        before: number of lines before the stream's first.
    """
    for number in itertools.count(before + 1):
        line = stream.readline(ROW_BYTES)
        on_line(len(line))
        if not line:
            return
        if len(line) == ROW_BYTES and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(ROW_BYTES)
                on_line(len(line))
            yield number, too_long()
        elif line.strip(_BLANK):
            yield number, line


def read_values(stream: BinaryIO, *, in_array: bool) -> Iterator[tuple[int, bytes | RowError]]:
    """Yield the number (from 1) and the text of each element of an array, or of each of several objects.

    Args:
        stream: the whole text.
        in_array: the text is one array; otherwise objects follow each other.

    Raises:
        CutOffError: the text ends within a row or before the array's bracket, goes on behind it, or is nested too
            deeply.
    """
    splitter = _Splitter(in_array)
    while chunk := stream.read(_CHUNK):
        for value in splitter.feed(chunk):
            yield splitter.number, value
    splitter.finish()


class _Splitter:
    """Finds where values begin and end, by strings and brackets alone; whether a value is JSON is checked later."""

    def __init__(self, in_array: bool) -> None:
        self.number = 0
        self._in_array = in_array
        # Depth within the present value; the array's own bracket is -1.
        self._depth = -1 if in_array else 0
        self._in_string = self._escaped = self._ended = False
        self._parts: list[bytes] = []
        self._size = self._brackets = 0

    def feed(self, chunk: bytes) -> Iterator[bytes | RowError]:
        """Yield the values that end in this chunk."""
        start = place = 0
        while place < len(chunk) and not self._ended:
            if self._in_string:
                place = self._pass_string(chunk, place)
                continue
            found = (_NEXT_WITHIN if self._depth > 0 else _NEXT).search(chunk, place)
            if found is None:
                break
            place = found.end()
            token = found[0]
            if token == b'"':
                self._in_string = True
            elif token in (b"{", b"["):
                self._depth += 1
                self._brackets += 1
                if self._depth > _DEPTH:
                    raise CutOffError(f"row {self.number + 1} is nested {_DEPTH:,} brackets deep")
                if self._brackets > _BRACKETS:
                    raise CutOffError(f"row {self.number + 1} has more than {_BRACKETS:,} brackets")
                if self._in_array and self._depth == 0:
                    start, self._brackets = place, 0
            elif token in (b"}", b"]"):
                self._depth -= 1
                if self._depth == 0 and not self._in_array:
                    yield from self._value(chunk[start:place])
                    start = place
                elif self._depth < 0 and self._in_array:
                    yield from self._last(chunk[start : found.start()])
                    start = place
                # A bracket too many among objects makes the next one invalid.
                self._depth = max(self._depth, 0)
            elif token == b"," and self._depth == 0 and self._in_array:
                yield from self._value(chunk[start : found.start()])
                start = place
        self._keep(chunk[start:])

    def finish(self) -> None:
        """Check that the text is complete.

        Raises:
            CutOffError: it is not.
        """
        rest = b"".join(self._parts).strip()
        if self._ended:
            if not rest:
                return
            raise CutOffError(
                f"there is more text behind the end of the array, which has {self.number} rows; a file has one array, "
                "and a row is an object"
            )
        if rest or self._size > ROW_BYTES or self._in_array:
            raise CutOffError(f"the file ends within row {self.number + 1}; it is incomplete")

    def _pass_string(self, chunk: bytes, place: int) -> int:
        """The place behind the string that began in an earlier chunk, or the chunk's end."""
        if self._escaped:
            place, self._escaped = place + 1, False
        found = _STRING_REST.match(chunk, place)
        end = found.end() if found else place
        if end < len(chunk):
            # Either the string's end, or a backslash whose character is in the next chunk.
            self._escaped = chunk[end : end + 1] == b"\\"
            self._in_string = self._escaped
            end += 1
        return end

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= ROW_BYTES:
            self._parts.append(part)
        else:
            self._parts.clear()

    def _value(self, part: bytes) -> Iterator[bytes | RowError]:
        self._keep(part)
        value: bytes | RowError = too_long() if self._size > ROW_BYTES else b"".join(self._parts)
        self._parts.clear()
        self._size = self._brackets = 0
        self.number += 1
        yield value

    def _last(self, part: bytes) -> Iterator[bytes | RowError]:
        """The element before the array's bracket, unless the array is empty."""
        self._ended = True
        if self.number or part.strip() or any(map(bytes.strip, self._parts)) or self._size > ROW_BYTES:
            yield from self._value(part)
        self._parts.clear()
        self._size = 0


def parse_json(line: bytes) -> Any:
    """Decode one value.

    Raises:
        RowError: the text is not UTF-8, not JSON, or contains characters that UTF-8 cannot encode.
    """
    try:
        row = json.loads(line.decode("utf-8-sig"))
        # The escape of a lone surrogate is valid JSON, but tokenizers and files reject the character later. Encoding
        # the row finds it; rows without such an escape skip the cost.
        if b"\\ud" in line.lower():
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    except UnicodeEncodeError as error:
        raise RowError("invalid text: an escaped lone surrogate (\\ud800 to \\udfff)") from error
    except json.JSONDecodeError as error:
        comma = error.msg == "Extra data" and error.doc[error.pos :].strip() == ","
        hint = ": a comma, which belongs between the elements of an array; lines end without one" if comma else ""
        raise RowError(f"invalid JSON: {error.msg} at column {error.colno}{hint}") from error
    except ValueError as error:
        # Python refuses to convert integers of more than 4300 digits.
        raise RowError(f"invalid JSON: a number is too large ({error})") from error
    return row

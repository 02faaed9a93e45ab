"""Reads a preference file line by line: the first stop of a pair.

    JSON-lines file -> read_lines -> (line number, bytes) -> parse_json -> JSON value

`parse_json` is separate from `read_lines` because the main process reads the file and worker processes parse.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minimind.errors import DataError


class RowError(ValueError):
    """The reason why one row cannot be used. The caller knows the file and the line and adds them."""


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the number (from 1) and the content of each line that is not blank.

    Raises:
        DataError: the file is missing, unreadable or empty.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such preference file; --data_path needs a file with one JSON object per line")
    found = False
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                # A byte order mark alone also makes a blank line.
                if line.strip(b"\xef\xbb\xbf \t\r\n"):
                    found = True
                    yield number, line
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error})") from error
    if not found:
        raise DataError(f"{path}: the file is empty; a preference file has one JSON object per line")


def parse_json(line: bytes) -> Any:
    """Decode one line.

    Raises:
        RowError: the line is not UTF-8, not JSON, or contains text that UTF-8 cannot encode.
    """
    try:
        row = json.loads(line.decode("utf-8-sig"))
        # The escape of a lone surrogate is valid JSON, but tokenizers and files reject the character later. Encoding
        # the row finds it; rows without such an escape skip the cost.
        if b"\\ud" in line.lower():
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8 (byte {error.start})") from error
    except UnicodeEncodeError as error:
        raise RowError("invalid text: an escaped lone surrogate (\\ud800 to \\udfff)") from error
    except json.JSONDecodeError as error:
        raise RowError(f"invalid JSON: {error.msg} at column {error.colno}") from error
    except ValueError as error:
        # Python refuses to convert integers of more than 4300 digits.
        raise RowError(f"invalid JSON: a number is too large ({error})") from error
    return row

"""JSON lines -> preference rows, each checked: the first stop of a pair.

A row is `{"chosen": [messages], "rejected": [messages]}`, a message `{"role": ..., "content": ...}`. What is wrong
with a row is said with file and line; whether it stops the run is decided later (`--on_bad_row`).
"""

from __future__ import annotations

import dataclasses
import json
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minimind.errors import DataError

ROLES = ("system", "user", "assistant", "tool")


class RowError(ValueError):
    """Why one row cannot be used; caught where the file and line are known."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceRow:
    """Two conversations that share everything up to an assistant turn."""

    chosen: list[dict[str, Any]]
    rejected: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be trained on, and why.

    Attributes:
        line: line number in the file, from 1.
        reason: what is wrong.
        tokenized: the row is whole but too little of it is left after truncation; it can be kept all the same.
    """

    line: int
    reason: str
    tokenized: bool


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Line numbers (from 1) and contents of a JSON-lines file; blank lines are left out.

    Raises:
        DataError: the file is missing, unreadable or empty.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such preference file; give one JSON object a line (--data_path)")
    found = False
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip(b"\xef\xbb\xbf \t\r\n"):
                    found = True
                    yield number, line
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if not found:
        raise DataError(f"{path}: is empty; a preference file has one JSON object a line")


def parse_row(line: bytes) -> PreferenceRow:
    """One line -> one checked row.

    Raises:
        RowError: what is wrong with it, without file and line.
    """
    try:
        return _checked(_parsed(line))
    except RecursionError as error:
        # What the parser still takes can be too deep to be compared or shown.
        raise RowError("broken JSON: nested too deeply") from error


def _parsed(line: bytes) -> Any:
    try:
        row = json.loads(line.decode("utf-8-sig"))
        if b"\\ud" in line.lower():
            # Only an escape can be half of a surrogate pair. It is no text: tokenizers and files refuse it later.
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8 (byte {error.start})") from error
    except UnicodeEncodeError as error:
        raise RowError("half of a surrogate pair (\\ud800 to \\udfff), which is no text") from error
    except json.JSONDecodeError as error:
        raise RowError(f"broken JSON: {error.msg} at column {error.colno}") from error
    except ValueError as error:
        raise RowError(f"broken JSON: a number too large ({error})") from error
    return row


def _checked(row: Any) -> PreferenceRow:
    if not isinstance(row, dict):
        raise RowError(f"a JSON {type(row).__name__}, not an object with 'chosen' and 'rejected'")
    for half in ("chosen", "rejected"):
        if half not in row:
            raise RowError(f"no {half!r}")
        _check_messages(half, row[half])
    _check_prompts(row["chosen"], row["rejected"])
    return PreferenceRow(chosen=row["chosen"], rejected=row["rejected"])


def _check_messages(half: str, messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise RowError(f"{half!r} is not a list of messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or "role" not in message:
            raise RowError(f"{half!r} message {index} is not an object with 'role' and 'content'")
        if message["role"] not in ROLES:
            role = reprlib.repr(message["role"])
            raise RowError(f"{half!r} message {index} has role {role}; known are {', '.join(ROLES)}")
        # An assistant turn that only calls tools may go without text.
        calls_tools = message["role"] == "assistant" and message.get("tool_calls")
        content = message.get("content")
        if not isinstance(content, str) and not calls_tools:
            raise RowError(f"{half!r} message {index} has no text in 'content'")
    if not any(message["role"] == "assistant" for message in messages):
        raise RowError(f"{half!r} has no assistant turn")


def _check_prompts(chosen: list[dict[str, Any]], rejected: list[dict[str, Any]]) -> None:
    for index, (one, other) in enumerate(zip(chosen, rejected, strict=False)):
        if one == other:
            continue
        if one["role"] == other["role"] == "assistant":
            return
        raise RowError(
            f"different prompts: 'chosen' and 'rejected' part at message {index} "
            f"({one['role']} / {other['role']}), before any assistant turn differs"
        )
    if len(chosen) == len(rejected):
        raise RowError("'chosen' and 'rejected' are the same")

"""Recognises the shape of a row and converts it to a checked pair.

    line -> parse_json (sources.py) -> the first shape that recognises the value -> PreferenceRow (checked by rows.py)

To add a shape, write its conversion, add an entry to `SHAPES` and a test. A conversion ends with `checked_row`, so
the checks are the same for every shape; it passes on what `read_columns` makes of the columns that it does not read.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from minimind.data.columns import read_columns
from minimind.data.rows import PreferenceRow, checked_row
from minimind.data.sources import RowError, parse_json

_JSON_TYPES = {list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowShape:
    """One way to write a preference pair as JSON.

    Attributes:
        description: completes "a row must be ..." in error messages.
        recognise: JSON object -> whether it has this shape.
        convert: JSON object of this shape -> checked pair; raises `RowError`.
    """

    description: str
    recognise: Callable[[Mapping[str, Any]], bool]
    convert: Callable[[Mapping[str, Any]], PreferenceRow]


def _convert_conversations(row: Mapping[str, Any]) -> PreferenceRow:
    columns = read_columns(row, own=("chosen", "rejected"))
    return checked_row(chosen=row["chosen"], rejected=row["rejected"], columns=columns)


# The first shape that recognises a row converts it, so a more specific shape must come before a more general one.
SHAPES: Mapping[str, RowShape] = {
    "conversations": RowShape(
        description="an object with 'chosen' and 'rejected', each a list of messages",
        recognise=lambda row: "chosen" in row and "rejected" in row,
        convert=_convert_conversations,
    ),
}


def parse_row(line: bytes) -> PreferenceRow:
    """Convert one line to a checked pair.

    Raises:
        RowError: the reason, without file and line.
    """
    try:
        value = parse_json(line)
        if isinstance(value, dict):
            for shape in SHAPES.values():
                if shape.recognise(value):
                    return shape.convert(value)
        known = " or ".join(shape.description for shape in SHAPES.values())
        raise RowError(f"unknown row shape: {_describe(value)}; a row must be {known}")
    except RecursionError as error:
        # The parser accepts deeper nesting than comparison and repr do, so the checks can fail here as well.
        raise RowError("invalid JSON: nested too deeply") from error


def _describe(value: Any) -> str:
    """The JSON type and, of an object, the first keys; short enough for a message."""
    if not isinstance(value, dict):
        return f"a JSON {_JSON_TYPES[type(value)]}"
    shortener = reprlib.Repr()
    shortener.maxlist, shortener.maxstring = 4, 20
    return f"an object with the keys {shortener.repr(list(value))}"

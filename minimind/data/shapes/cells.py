"""Cells of tables: messages that a CSV file or a column of texts has as the text of a list.

row -> with_messages -> the same row with lists of messages as halves
"""

from __future__ import annotations

import re
from typing import Any

from minimind.data.messages import parse_json_text
from minimind.data.shapes.shape import HALVES
from minimind.data.sources import RowError

# A list of objects as Python writes it, which `DataFrame.to_csv` puts into a cell.
_PYTHON = re.compile(r"\s*\[\s*\{\s*'(?:role|content|from|value)'\s*:")


def with_messages(row: dict[str, Any], *, is_json: bool) -> dict[str, Any]:
    """The row with messages where both halves are JSON texts of messages.

    Args:
        is_json: the row is JSON itself, where a text is a text: it may be an answer that happens to be such JSON.

    Raises:
        RowError: a half is a list as Python writes it, or whether it is a text or messages is not known.
    """
    for names in HALVES:
        values = (row.get(name) for name in names)
        texts = [text for text in values if isinstance(text, str) and text.lstrip().startswith("[")]
        if len(texts) < len(names):
            continue
        if any(map(_PYTHON.match, texts)):
            raise RowError(
                f"{names[0]!r} or {names[1]!r} is a list as Python writes it, not JSON; write it by json.dumps"
            )
        lists = [_list_of_messages(text) for text in texts]
        if None in lists:
            continue
        if is_json:
            raise RowError(
                f"{names[0]!r} and {names[1]!r} are JSON texts of messages; give the lists themselves, or, if they are "
                "what the assistant says, one message each"
            )
        row = {**row, **dict(zip(names, lists, strict=True))}
    return row


def _list_of_messages(text: str) -> list[Any] | None:
    try:
        value = parse_json_text("a half", text)
    except RowError:
        return None
    keys = ("role", "from")
    found = (
        isinstance(value, list)
        and value
        and all(isinstance(one, dict) and any(k in one for k in keys) for one in value)
    )
    return value if found else None

"""Cells of tables: messages that a CSV file or a column of texts has as JSON.

row -> with_messages -> the same row with lists of messages as halves
"""

from __future__ import annotations

from typing import Any

from minimind.data.messages import messages_of_text
from minimind.data.shapes.shape import HALVES
from minimind.data.sources import RowError

# OpenAI's answers are messages in any case.
_HALVES = (*HALVES, ("preferred_output", "non_preferred_output"))


def with_messages(row: dict[str, Any], *, is_json: bool) -> dict[str, Any]:
    """The row with messages where both halves are JSON texts of a message or of messages.

    Args:
        is_json: the row is JSON itself, where a text is a text: it may be an answer that happens to be such JSON.

    Raises:
        RowError: a half is a list as Python writes it, or whether it is a text or messages is not known.
    """
    for names in _HALVES:
        values = (row.get(name) for name in names)
        texts = [text for text in values if isinstance(text, str) and text.lstrip().startswith(("[", "{"))]
        if len(texts) < len(names):
            continue
        lists = [messages_of_text(repr(name), text) for name, text in zip(names, texts, strict=True)]
        if None in lists:
            continue
        if is_json:
            raise RowError(
                f"{names[0]!r} and {names[1]!r} are JSON texts of messages; give the lists themselves, or, if they are "
                "what the assistant says, one message each"
            )
        row = {**row, **dict(zip(names, lists, strict=True))}
    return row

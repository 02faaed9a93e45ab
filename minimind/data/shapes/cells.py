"""Cells of tables: messages that a CSV file or a column of texts has as JSON.

row -> with_messages -> the same row with messages as answers
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minimind.data.messages import messages_of_text
from minimind.data.shapes.shape import HALVES
from minimind.data.shapes.turns import TurnNames
from minimind.data.sources import RowError

# Columns of two answers to one prompt.
_PAIRS = (
    *HALVES,
    ("preferred_output", "non_preferred_output"),
    ("response", "rejected_response"),
    ("response_0", "response_1"),
    ("response1", "response2"),
    ("human_ref_A", "human_ref_B"),
)
# Columns of an answer that stands alone; ms-swift's rejected one stands beside a conversation.
_ALONE = ("completion", "response", "answer", "output", "rejected_response")


def with_messages(row: dict[str, Any], names: TurnNames, *, is_json: bool) -> dict[str, Any]:
    """The row with messages where answers are JSON texts of a message or of messages.

    Args:
        names: further keys of the role and the content of a message.
        is_json: the row is JSON itself, where a text is a text: it may be an answer that happens to be such JSON.

    Raises:
        RowError: an answer is a list as Python writes it, whether it is a text or messages is not known, or only one
            of two answers is messages.
    """
    pairs: list[tuple[str, ...]] = [
        (one, other) for one, other in _PAIRS if row.get(one) is not None and row.get(other) is not None
    ]
    changed: dict[str, Any] = {}
    for columns in pairs or [(name,) for name in _ALONE]:
        if is_json and not all(_is_bracketed(row.get(name)) for name in columns):
            continue
        found = {name: _messages(row.get(name), name, names) for name in columns}
        known = [messages for messages in found.values() if messages is not None]
        if len(known) < len(columns):
            if known and not is_json:
                raise RowError(f"of {_named(columns)} one is the JSON text of messages and the other is not")
        elif not is_json:
            # A list in the column `output` would be several answers.
            changed |= found if len(columns) > 1 or len(known[0]) > 1 else {columns[0]: known[0][0]}
        elif len(columns) > 1 or _ends_with_an_answer(known[0], names):
            many = len(columns) > 1
            raise RowError(
                f"{_named(columns)} {'are JSON texts' if many else 'is the JSON text'} of messages; give the "
                f"{'lists themselves' if many else 'list itself'}, or, if {'they are' if many else 'it is'} what the "
                f"assistant says, {'one message each' if many else 'a message'}"
            )
    return {**row, **changed} if changed else row


def _is_bracketed(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith(("[", "{"))


def _messages(value: Any, name: str, names: TurnNames) -> list[Any] | None:
    return messages_of_text(repr(name), value, (names.role, names.content)) if isinstance(value, str) else None


def _ends_with_an_answer(messages: list[Any], names: TurnNames) -> bool:
    last = messages[-1]
    return "assistant" in (last.get("role"), names.roles.get(last.get(names.role)))


def _named(columns: Sequence[str]) -> str:
    return " and ".join(map(repr, columns))

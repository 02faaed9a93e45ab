"""Shapes whose answers are messages: MiniMind's, which TRL's conversational formats share, and ShareGPT's.

row -> messages of the prompt and of both halves, and the columns beside them (columns.py) -> checked pair
"""

from __future__ import annotations

import reprlib
from typing import Any

from minimind.data.messages import parse_json_text
from minimind.data.rows import PreferenceRow
from minimind.data.shapes.halves import answer, pair
from minimind.data.shapes.options import ShapeOptions
from minimind.data.shapes.shape import CONVERSATIONS, Row, RowShape, given_columns
from minimind.data.shapes.turns import TurnNames, is_turns, messages_of_turns
from minimind.data.sources import RowError

_NAMES = TurnNames()


def _fits_minimind(row: Row, given: frozenset[str]) -> bool:
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) or _has_turns(chosen, rejected):
        return False
    # Halves without a prompt of their own belong to the conversation beside them.
    return bool(row.get("prompt")) or not _only_answers(chosen, rejected) or CONVERSATIONS.isdisjoint(given)


def _convert_minimind(row: Row, options: ShapeOptions) -> list[PreferenceRow]:
    chosen, rejected = ([value] if isinstance(value, dict) else value for value in (row["chosen"], row["rejected"]))
    return [pair(row, chosen=chosen, rejected=rejected)]


MINIMIND = RowShape(
    title="MiniMind's",
    needs=(("chosen",), ("rejected",)),
    fits=_fits_minimind,
    convert=_convert_minimind,
)


def _fits_sharegpt(row: Row, given: frozenset[str]) -> bool:
    chosen, rejected = row["chosen"], row["rejected"]
    columns = CONVERSATIONS & given
    if _has_turns(chosen, rejected):
        return True
    if not columns:
        return False
    return _only_answers(chosen, rejected) or not all(_is_copy(row[column], chosen, rejected) for column in columns)


def _convert_sharegpt(row: Row, options: ShapeOptions) -> list[PreferenceRow]:
    halves = {half: messages_of_turns(half, answer(half, row[half]), _NAMES) for half in ("chosen", "rejected")}
    columns = sorted(given_columns(row) & CONVERSATIONS)
    if len(columns) > 1:
        raise RowError(f"both {' and '.join(map(repr, columns))} are there; rename the one that is not the prompt")
    if columns:
        (column,) = columns
        messages = _prompt(column, row)
        return [pair(row, **halves, read=("prompt",), place=column, prompt=messages)]
    if not _has_turns(row["chosen"], row["rejected"]):
        raise RowError("'conversations' is not there, and 'chosen' and 'rejected' have no turns with 'from'")
    return [pair(row, **halves, prompt=messages_of_turns("prompt", row.get("prompt"), _NAMES))]


def _prompt(column: str, row: Row) -> list[Any]:
    """The messages of the conversation before the answers; a column `prompt` beside it repeats one of them."""
    turns, prompt = row[column], row.get("prompt")
    if isinstance(turns, str):
        turns = parse_json_text(repr(column), turns)
    if not isinstance(turns, list):
        raise RowError(f"{column!r} is not a list of turns: {reprlib.repr(turns)}")
    messages: list[Any] = messages_of_turns(column, turns, _NAMES)
    if prompt and prompt not in [one.get("content") for one in messages if isinstance(one, dict)]:
        raise RowError(f"'prompt' is no turn of {column!r}; rename the one that is no part of the conversation")
    return messages


SHAREGPT = RowShape(
    title="ShareGPT",
    needs=(("conversations", "messages", "chosen"), ("chosen",), ("rejected",)),
    fits=_fits_sharegpt,
    convert=_convert_sharegpt,
)


def _is_copy(messages: Any, *halves: Any) -> bool:
    """Whether a conversation repeats the beginning of a half, as some data sets do."""
    length = len(messages) if isinstance(messages, list) else 0
    return any(isinstance(half, list) and half[:length] == messages for half in halves)


def _has_turns(*halves: Any) -> bool:
    return any(is_turns(half, _NAMES) for half in halves)


def _only_answers(*halves: Any) -> bool:
    """Whether halves have no prompt of their own: texts, or messages from an assistant's on."""
    return all(isinstance(half, str) or _first_role(half) == "assistant" for half in halves)


def _first_role(half: Any) -> str | None:
    first = half[0] if isinstance(half, list) and half else half
    name = first.get("from", first.get("role")) if isinstance(first, dict) else None
    return _NAMES.roles.get(name) if isinstance(name, str) else None

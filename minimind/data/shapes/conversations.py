"""Shapes whose answers are messages: MiniMind's (and TRL's conversational formats), ShareGPT's, OpenAI's, ms-swift's.

row -> messages of the prompt and of both halves, and the columns beside them (columns.py) -> checked pair
"""

from __future__ import annotations

import dataclasses
from typing import Any

from minimind.data.messages import parse_json_text, parsed_list, shown
from minimind.data.rows import PreferenceRow
from minimind.data.shapes.halves import answer, pair, text_pair
from minimind.data.shapes.options import ShapeOptions
from minimind.data.shapes.shape import CONVERSATIONS, Row, RowShape, given_columns, is_given
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
    halves = {half: messages_of_turns(half, answer(half, row[half]), options.names) for half in ("chosen", "rejected")}
    columns = sorted(given_columns(row) & CONVERSATIONS)
    if len(columns) > 1:
        raise RowError(f"both {' and '.join(map(repr, columns))} are there; rename the one that is not the prompt")
    if columns:
        (column,) = columns
        messages = _prompt(column, row, options)
        return [pair(row, **halves, read=("prompt",), place=column, prompt=messages)]
    if not any(is_turns(row[half], options.names) for half in halves):
        raise RowError("'conversations' is not there, and 'chosen' and 'rejected' have no turns with 'from'")
    return [pair(row, **halves, prompt=messages_of_turns("prompt", row.get("prompt"), options.names))]


def _prompt(column: str, row: Row, options: ShapeOptions) -> list[Any]:
    """The messages of the conversation before the answers; a column `prompt` beside it repeats one of them."""
    turns, prompt = row[column], row.get("prompt")
    if isinstance(turns, str):
        turns = parse_json_text(repr(column), turns)
    if not isinstance(turns, list):
        raise RowError(f"{column!r} is not a list of turns: {shown(turns)}")
    messages: list[Any] = messages_of_turns(column, turns, options.names)
    if prompt and prompt not in [one.get("content") for one in messages if isinstance(one, dict)]:
        raise RowError(f"'prompt' is no turn of {column!r}; rename the one that is no part of the conversation")
    return messages


SHAREGPT = RowShape(
    title="ShareGPT",
    needs=(("conversations", "messages", "chosen"), ("chosen",), ("rejected",)),
    fits=_fits_sharegpt,
    convert=_convert_sharegpt,
)


def _convert_openai(row: Row, options: ShapeOptions) -> list[PreferenceRow]:
    given = row["input"]
    if isinstance(given, str):
        given = parse_json_text("'input'", given)
    if not isinstance(given, dict) or not isinstance(given.get("messages"), list) or not given["messages"]:
        raise RowError(f"'input' is not an object with a list of 'messages': {shown(given)}")
    if given.get("tools") and row.get("tools"):
        raise RowError("both 'tools' and 'tools' of 'input' are there; remove one of them")
    one = pair(
        row,
        chosen=answer("preferred_output", row["preferred_output"]),
        rejected=answer("non_preferred_output", row["non_preferred_output"]),
        read=("input", "preferred_output", "non_preferred_output"),
        place="input.messages",
        prompt=given["messages"],
        tools=given.get("tools") or row.get("tools"),
    )
    unused = [f"input.{name}" for name, value in given.items() if name not in ("messages", "tools") and is_given(value)]
    return [dataclasses.replace(one, unused=(*one.unused, *unused))]


OPENAI = RowShape(
    title="OpenAI's",
    needs=(("preferred_output",), ("non_preferred_output",), ("input",)),
    fits=lambda row, given: isinstance(row["input"], dict | str),
    convert=_convert_openai,
)
_SWIFT_REJECTED = ("rejected_response", "rejected_messages")


def _fits_swift(row: Row, given: frozenset[str]) -> bool:
    return given.isdisjoint({"chosen", "chosen_response"})


def _convert_swift(row: Row, options: ShapeOptions) -> list[PreferenceRow]:
    given = given_columns(row)
    if not _fits_swift(row, given):
        raise RowError("both 'messages' or 'response' and another column have the better answer; remove one of them")
    if "messages" not in given:
        if "rejected_response" not in given:
            raise RowError("'rejected_messages' needs 'messages'")
        return [
            text_pair(
                row,
                place="query",
                question=row["query"],
                chosen=row["response"],
                rejected=row["rejected_response"],
                read=("response", "rejected_response"),
            )
        ]
    if given.issuperset(_SWIFT_REJECTED):
        raise RowError("both 'rejected_response' and 'rejected_messages' are there; remove one of them")
    messages = _turns("messages", row)
    read = ("messages", *_SWIFT_REJECTED)
    if "rejected_messages" in given:
        rejected = _turns("rejected_messages", row)
        return [pair(row, chosen=messages, rejected=rejected, read=read)]
    if not isinstance(messages, list) or len(messages) < 2 or _first_role(messages[-1]) != "assistant":
        raise RowError("'messages' is not a list of messages that ends with the better answer")
    rejected = answer("rejected_response", row["rejected_response"])
    return [pair(row, chosen=messages[-1:], rejected=rejected, read=read, place="messages", prompt=messages[:-1])]


def _turns(column: str, row: Row) -> Any:
    return messages_of_turns(column, parsed_list(repr(column), row[column]))


SWIFT = RowShape(
    title="ms-swift's",
    needs=(_SWIFT_REJECTED, ("messages", "query"), ("messages", "response")),
    fits=_fits_swift,
    convert=_convert_swift,
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

"""Turns as ShareGPT writes them, `{"from": "human", "value": ...}`, in the form of messages.

a column's value -> messages_of_turns -> list of messages, which `read_messages` checks
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from minimind.data.messages import Message, parse_json_text, shown
from minimind.data.sources import RowError

# A turn of this role calls functions: its text is the JSON of one call or of a list of calls.
FUNCTION_CALL = "function_call"
ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    **{name: name for name in ("system", "developer", FUNCTION_CALL)},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TurnNames:
    """How turns are written.

    Attributes:
        role, content: the keys of a turn.
        roles: name of a role in the file -> role of a message, or FUNCTION_CALL.
    """

    role: str = "from"
    content: str = "value"
    roles: Mapping[str, str] = dataclasses.field(default_factory=lambda: ROLES)


_SHAREGPT = TurnNames()


def messages_of_turns(column: str, turns: Any, names: TurnNames = _SHAREGPT) -> Any:
    """The messages of a list of turns; what is no turn stays as it is.

    Raises:
        RowError: a turn has an unknown role, no content, or calls functions in a way that cannot be read.
    """
    if not isinstance(turns, list):
        return turns
    return [_message(f"{column!r} turn {index}", turn, names) for index, turn in enumerate(turns)]


def is_turns(value: Any, names: TurnNames = _SHAREGPT) -> bool:
    """Whether a value is a turn or a list of turns."""
    turns = value if isinstance(value, list) else [value]
    return any(isinstance(turn, dict) and names.role in turn for turn in turns)


def _message(place: str, turn: Any, names: TurnNames) -> Any:
    if not isinstance(turn, dict):
        return turn
    keys = [key for key in dict.fromkeys((names.role, "role")) if turn.get(key) is not None]
    if len(keys) > 1:
        raise RowError(f"{place} has both {keys[0]!r} and {keys[1]!r}; remove one of them")
    if not keys:
        return turn
    (key,) = keys
    content = names.content if key == names.role else "content"
    role = names.roles.get(turn[key]) if isinstance(turn[key], str) else None
    if role is None:
        raise RowError(f"{place} has the unknown role {shown(turn[key])}; use one of {', '.join(names.roles)}")
    if content not in turn:
        raise RowError(f"{place} has no {content!r}")
    message = {name: value for name, value in turn.items() if name not in (key, content)}
    if role == FUNCTION_CALL:
        return {**message, "role": "assistant", "content": "", "tool_calls": _calls(place, turn[content])}
    return {**message, "role": role, "content": turn[content]}


def _calls(place: str, value: Any) -> list[Message]:
    """The tool calls of a turn of the role FUNCTION_CALL."""
    parsed = parse_json_text(f"{place}: the function call", value) if isinstance(value, str) else value
    calls = parsed if isinstance(parsed, list) else [parsed]
    for call in calls:
        if not (isinstance(call, dict) and isinstance(call.get("name"), str) and "arguments" in call):
            raise RowError(f"{place}: the function call has no 'name' and 'arguments': {shown(call)}")
    if not calls:
        raise RowError(f"{place}: the list of function calls is empty")
    return [{"type": "function", "function": call} for call in calls]

"""Checked messages of one conversation.

    messages of a half or of a prompt, as the file has them -> read_messages -> messages as the chat template takes them

A message is `{"role": ..., "content": ...}`. Other keys pass to the chat template as they are, with these exceptions:
null is read as "not given" (column formats write it for every key that another row has), arguments of tool calls that
are a JSON text become the object that they describe, the role `developer` is read as `system`, and a content that is
a list of text parts becomes one text.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable
from typing import Any

from minimind.data.sources import RowError, parse_json

Message = dict[str, Any]

ROLES = ("system", "user", "assistant", "tool")
# OpenAI's newer name of the role that instructs the model. Few chat templates know it.
DEVELOPER = "developer"
# Names in a message, and characters of a name.
_NAMED, _NAME_LENGTH = 6, 48
# Characters of a value in a message.
_SHOWN = 120
# Types of a part that is a text: of chat completions, and of OpenAI's responses.
_TEXT_PARTS = ("text", "input_text", "output_text")
# The beginning of a list or an object as Python writes it, which `DataFrame.to_csv` puts into a cell; of messages.
_PYTHON = re.compile(r"\s*[\[{]\s*(?:\{\s*)?'")
_PYTHON_MESSAGES = re.compile(r"\[?\s*\{\s*'(?:role|content|from|value)'\s*:")
_NOT_JSON = "as Python writes it, not JSON; write it by json.dumps"


def read_messages(column: str, messages: Any) -> list[Message]:
    """Check a list of messages and bring it into the form that chat templates expect.

    Args:
        column: name of the column, for error messages.
        messages: the column's value; it is not changed.

    Raises:
        RowError: the reason, without file and line.
    """
    if not isinstance(messages, list) or not messages:
        raise RowError(f"{column!r} is not a list of messages")
    read = [_read_message(f"{column!r} message {index}", message) for index, message in enumerate(messages)]
    if _has_role(messages, DEVELOPER) and _has_role(messages, "system"):
        raise RowError(f"{column!r} has both a system and a developer message; keep one of them")
    return read


def differing_keys(one: Message, other: Message) -> list[str]:
    """Keys with different values in two messages."""
    return [key for key in {**one, **other} if one.get(key) != other.get(key)]


def listed(names: Iterable[str]) -> str:
    """Names for an error message: quoted, the first few, each shortened."""
    names = list(names)
    shown = [repr(name if len(name) <= _NAME_LENGTH else f"{name[:_NAME_LENGTH]}...") for name in names[:_NAMED]]
    return ", ".join(shown) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def shown(value: Any) -> str:
    """A value of a row for an error message, shortened as a whole: a value may be nested and wide."""
    text = reprlib.repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def has_developer(messages: Any) -> bool:
    """Whether a column's value is a list with a message of the role `developer`."""
    return isinstance(messages, list) and _has_role(messages, DEVELOPER)


def _has_role(messages: list[Any], role: str) -> bool:
    return any(isinstance(message, dict) and message.get("role") == role for message in messages)


def _read_message(place: str, message: Any) -> Message:
    if not isinstance(message, dict) or "role" not in message:
        raise RowError(f"{place} is not an object with 'role' and 'content'")
    if None in message.values():
        # Whether an assistant turn has the content null or none at all is left to the template.
        message = {key: value for key, value in message.items() if value is not None or key == "content"}
    role = message.get("role")
    if role == DEVELOPER:
        message = {**message, "role": "system"}
    elif role not in ROLES:
        raise RowError(f"{place} has the unknown role {shown(role)}; use one of {', '.join(ROLES)}")
    if message.get("function_call"):
        raise RowError(f"{place} has 'function_call', which chat templates do not read; write it as 'tool_calls'")
    if given := [key for key in ("tools", "functions") if role != "assistant" and message.get(key)]:
        raise RowError(f"{place} has {given[0]!r}; move it to the row's own column 'tools'")
    # An assistant turn that only calls tools needs no text.
    calls = message.get("tool_calls") if role == "assistant" else None
    content = message.get("content")
    if isinstance(content, list) and content:
        content = _joined(place, content)
        message = {**message, "content": content}
    if not isinstance(content, str) and not (calls and content is None):
        raise RowError(f"{place} has no text in 'content'")
    if calls:
        message = {**message, "tool_calls": _read_calls(place, calls)}
    return message


def _joined(place: str, parts: list[Any]) -> str:
    """The text of a content that is given as parts, `[{"type": "text", "text": ...}]`, one directly after the other."""
    for part in parts:
        if not isinstance(part, dict) or "type" not in part:
            raise RowError(f"{place} has no text in 'content', but a list of {shown(part)}")
        if part["type"] not in _TEXT_PARTS:
            raise RowError(f"{place} has a part of the type {shown(part['type'])}; only text is trained on")
        if not isinstance(part.get("text"), str):
            raise RowError(f"{place} has a part of the type {part['type']!r} without a text")
        if more := [key for key, value in part.items() if key not in ("type", "text") and value]:
            raise RowError(f"{place} has a text part with {listed(more)}; only text is trained on")
    return "".join(part["text"] for part in parts)


def _read_calls(place: str, calls: Any) -> list[Any]:
    """Tool calls, each `{"name": ..., "arguments": {...}}` or `{"function": {"name": ..., "arguments": {...}}}`."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RowError(f"{place}: 'tool_calls' is not a list of objects")
    read = []
    for index, call in enumerate(calls):
        function = call.get("function")
        if isinstance(function, dict):
            call = {**call, "function": _with_parsed_arguments(f"{place}, tool call {index}", function)}
        read.append(_with_parsed_arguments(f"{place}, tool call {index}", call))
    return read


def _with_parsed_arguments(place: str, function: Message) -> Message:
    """OpenAI gives arguments as a JSON text. A template that writes them as JSON would quote that text again."""
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return function
    # Some servers give an empty text for a function without arguments.
    parsed = parse_json_text(f"{place}: 'arguments'", arguments) if arguments.strip() else {}
    if not isinstance(parsed, dict):
        raise RowError(f"{place}: the text in 'arguments' is not a JSON object")
    return {**function, "arguments": parsed}


def parse_json_text(place: str, text: str) -> Any:
    """The value of a JSON text inside a row.

    Raises:
        RowError: names the place.
    """
    try:
        return parse_json(text.encode("utf-8"))
    except RowError as error:
        hint = f"; it is written {_NOT_JSON}" if _PYTHON.match(text) else ""
        raise RowError(f"{place} is a text that is not valid JSON ({error}){hint}") from error


def parsed_list(place: str, value: Any) -> Any:
    """A value that has to be a list: the list of which it is the JSON text, as cells of tables have it, or the value.

    Raises:
        RowError: it is the text of a list as Python writes it.
    """
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return parse_json_text(place, value)
    except RowError:
        if _PYTHON.match(value):
            raise
        return value


def messages_of_text(place: str, text: str, keys: tuple[str, str] = ("from", "value")) -> list[Any] | None:
    """The messages, or turns with these keys, that a text describes as JSON; None for any other text.

    Raises:
        RowError: it describes them as Python writes them.
    """
    if not text.lstrip().startswith(("[", "{")):
        return None
    if _are_messages_in_python(text.strip()):
        raise RowError(f"{place} is a message or a list {_NOT_JSON}, or, if this is what is said, give it as a message")
    try:
        value = parse_json_text(place, text)
    except RowError:
        return None
    messages = value if isinstance(value, list) else [value]
    # One object may be anything that has a role.
    names = ({"role"} if isinstance(value, list) else {"role", "content"}, set(keys))
    found = messages and all(isinstance(one, dict) and any(map(one.keys().__ge__, names)) for one in messages)
    return messages if found else None


def _are_messages_in_python(text: str) -> bool:
    if not _PYTHON_MESSAGES.match(text):
        return False
    if text.startswith("["):
        return text.endswith("]")
    keys = (("'role'", "'content'"), ("'from'", "'value'"))
    return text.endswith("}") and any(first in text and second in text for first, second in keys)

"""Arguments of tool calls in the form that a chat template takes: an object, or a JSON text.

    checked messages (arguments as objects) -> fit_arguments, the template -> messages as the template takes them

Most templates write an object as JSON. Some insert the arguments into the text as they are, so that an object raises an
error or is written as Python writes it: those need the JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from minimind.data.messages import Message
from minimind.data.sources import RowError
from minimind.data.template import ChatTemplate, TemplateInput


def fit_arguments(messages: list[Message], template: ChatTemplate, given: TemplateInput) -> list[Message]:
    """Messages whose tool calls the template renders.

    Args:
        messages: checked messages; they are not changed.
        given: what the template receives besides the messages.

    Raises:
        RowError: the template rejects the messages in both forms; the reason is that of the first.
    """
    objects = [value for message in messages for value in _arguments(message) if isinstance(value, dict) and value]
    if not objects:
        return messages
    try:
        text = template.render(messages, given)
    except RowError as rejection:
        try:
            template.render(as_text := _with_texts(messages), given)
        except RowError:
            raise rejection from None
        return as_text
    # Python writes a key as 'city', JSON as "city".
    return _with_texts(messages) if any(str(value) in text for value in objects) else messages


def _arguments(message: Message) -> Iterator[Any]:
    """The arguments of an assistant's tool calls; other roles may have anything under this key."""
    for call in (message.get("tool_calls") or ()) if message["role"] == "assistant" else ():
        function = call.get("function")
        yield (function if isinstance(function, dict) else call).get("arguments")


def _with_texts(messages: list[Message]) -> list[Message]:
    """The same messages with JSON texts as arguments."""
    return [
        {**message, "tool_calls": [_call_with_text(call) for call in message["tool_calls"]]}
        if any(isinstance(value, dict) for value in _arguments(message))
        else message
        for message in messages
    ]


def _call_with_text(call: Message) -> Message:
    if isinstance(call.get("function"), dict):
        return {**call, "function": _call_with_text(call["function"])}
    if isinstance(call.get("arguments"), dict):
        return {**call, "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
    return call

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

_SAMPLE = {"samplekey": "samplevalue"}


def fit_arguments(messages: list[Message], template: ChatTemplate, given: TemplateInput) -> list[Message]:
    """Messages whose tool calls have the form that the template takes.

    Args:
        messages: checked messages; they are not changed.
        given: what the template receives besides the messages.
    """
    calls = [
        call
        for message in messages
        if message["role"] == "assistant"
        for call in message.get("tool_calls") or ()
        if isinstance(_function(call).get("arguments"), dict) and _function(call)["arguments"]
    ]
    return _with_texts(messages) if calls and _takes_texts(calls[0], template, given) else messages


def _takes_texts(call: Message, template: ChatTemplate, given: TemplateInput) -> bool:
    """Whether a template needs arguments as a JSON text: found with this call, its arguments replaced by known words.

    The conversation itself cannot show it: a tool's result may repeat the arguments in another form.
    """
    known = {**_function(call), "arguments": _SAMPLE}
    call = {**call, "function": known} if isinstance(call.get("function"), dict) else known
    sample: list[Message] = [
        {"role": "user", "content": "Question"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    try:
        # Python writes a key as 'samplekey', JSON as "samplekey".
        return str(_SAMPLE) in template.render(sample, given)
    except RowError:
        pass
    try:
        template.render(_with_texts(sample), given)
    except RowError:
        return False  # it takes no calls at all, or more than the sample has
    return True


def _arguments(message: Message) -> Iterator[Any]:
    """The arguments of an assistant's tool calls; other roles may have anything under this key."""
    for call in (message.get("tool_calls") or ()) if message["role"] == "assistant" else ():
        yield _function(call).get("arguments")


def _function(call: Message) -> Message:
    """The part of a call that has the arguments: OpenAI's form has a `function` object, others are flat."""
    function = call.get("function")
    return function if isinstance(function, dict) else call


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

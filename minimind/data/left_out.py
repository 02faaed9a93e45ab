"""What a chat template leaves out of a row: a conversation that it renders in part is another conversation.

    row, template -> check_rendered -> RowError if a message, a tool or a call is missing in the rendered text
                  -> not_used       -> names of columns and keys that nothing reads, to be counted

A template is a program, so what it uses is seen in what it writes. Only names of keys are looked up in its source.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from minimind.data.messages import Message, listed
from minimind.data.rows import CheckedRow
from minimind.data.sources import RowError
from minimind.data.template import ChatTemplate, TemplateInput

# Characters from which on a text is not part of a template by chance.
_LEAST_EVIDENCE = 16
_WORD = re.compile(r"\w+")
# Keys of messages that need no mention: what they say is checked in the rendered text, or they link calls and results.
_KNOWN_KEYS = frozenset({"role", "content", "tool_calls", "tool_call_id"})


def check_rendered(row: CheckedRow, template: ChatTemplate, given: TemplateInput) -> None:
    """Check that the rendered conversations of a row contain their system and tool messages, tool calls and tools.

    Templates that do not know a role or tools leave them out without an error. What assistants say is checked where
    their turns are found.

    Args:
        given: what the template receives besides the messages.

    Raises:
        RowError: names what is missing.
    """
    for half, messages in row.conversations.items():
        parts = list(_parts(half, messages, given))
        text = template.render(messages, given) if parts else ""
        for part in parts:
            if not (part.evidence and part.evidence in text) and _is_left_out(text, template, part):
                raise RowError(
                    f"the chat template leaves out {part.name}; use a template that renders it (--chat_template), or "
                    "remove it from the row"
                )


def not_used(row: CheckedRow, words: frozenset[str]) -> Iterator[str]:
    """Names of what nothing reads: columns, keys of messages, variables for the template.

    Args:
        words: all words of the chat template's source; a key that is not among them cannot be read by it.
    """
    yield from (f"column {listed([name])}" for name in row.unused)
    yield from (f"{listed([name])} of 'chat_template_kwargs'" for name in row.template_kwargs if name not in words)
    messages = (message for conversation in row.conversations.values() for message in conversation)
    keys = {key: None for message in messages for key in message if key not in _KNOWN_KEYS}
    yield from (f"{listed([key])} of messages" for key in keys if key not in words)


def words_of(template: ChatTemplate) -> frozenset[str]:
    """All words of a template's source, or of the sources if it has several."""
    source = template.tokenizer.chat_template
    return frozenset(_WORD.findall(source if isinstance(source, str) else " ".join(source.values())))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    """A part of a conversation.

    Attributes:
        name: for messages.
        evidence: a text that, found in the rendered conversation, shows that the part is there; empty if there is none.
        messages, given: the conversation without the part.
    """

    name: str
    evidence: str
    messages: list[Message]
    given: TemplateInput


def _parts(half: str, messages: list[Message], given: TemplateInput) -> Iterator[_Part]:
    if given.tools:
        yield _Part(
            name="the column 'tools'", evidence="", messages=messages, given=dataclasses.replace(given, tools=None)
        )
    for index, message in enumerate(messages):
        before, after = messages[:index], messages[index + 1 :]
        if message["role"] in ("system", "tool") and (content := message["content"].strip()):
            name = f"a {message['role']} message of {half!r}"
            yield _Part(
                name=name, evidence=_evidence(content, [*before, *after]), messages=[*before, *after], given=given
            )
        elif message["role"] == "assistant" and message.get("tool_calls"):
            silent = {"content": "", **{key: value for key, value in message.items() if key != "tool_calls"}}
            name = f"the tool calls of {half!r}"
            yield _Part(name=name, evidence="", messages=[*before, silent, *after], given=given)


def _evidence(content: str, others: list[Message]) -> str:
    """A message's text, if neither the template nor another message is likely to contain it."""
    said = any(content in (other.get("content") or "") for other in others)
    return "" if said or len(content) < _LEAST_EVIDENCE else content


def _is_left_out(text: str, template: ChatTemplate, part: _Part) -> bool:
    """Whether the conversation without the part is rendered the same.

    A part that is rewritten, or that switches something as a system message of "/no_think" does, is used.
    """
    try:
        return template.render(part.messages, part.given) == text
    except RowError:
        return False

"""Finds the answer of a conversation by its other half, which saves a rendering with placeholders.

    messages of both halves -> rendered      R = T0 answer T1,  O = T0 other T1
    T1: how the template ends a sample conversation; T0: ends as it opens an answer of the sample -> Turn, or None

What is accepted is where placeholders would find the answer: both texts are the same up to the template's own header
of an answer, and end as the sample does. Anything else is left to turns.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from minimind.data.template import Messages
from minimind.data.turn_markers import TurnMarkers

_KEYS = {"role", "content"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """Characters of an assistant's turn in a rendered text: text[start:text_end] is what it says, and
    text[text_end:end] the marker that closes it."""

    start: int
    text_end: int
    end: int


def are_comparable(messages: Messages, other: Messages) -> bool:
    """Whether two conversations differ in their last message alone, which is the only answer and a text."""
    return (
        len(messages) == len(other)
        and messages[-1]["role"] == other[-1]["role"] == "assistant"
        and messages[-1].keys() == other[-1].keys() == _KEYS
        and messages[:-1] == other[:-1]
        and not any(message["role"] == "assistant" for message in messages[:-1])
    )


def compared_turn(
    markers: TurnMarkers, answer: Mapping[str, Any], text: str, other: Mapping[str, Any], other_text: str
) -> Turn | None:
    """The turn of an answer; None if it is not where the other answer is, or not between known texts.

    Args:
        answer, other: last messages of two comparable conversations.
        text, other_text: both rendered.
    """
    start = _start(answer["content"], text, markers.tail)
    if start is None or start != _start(other["content"], other_text, markers.tail):
        return None
    before = text[:start]
    head, header, block = before.rpartition(markers.header) if markers.header else ("", "", "")
    if not header or block not in markers.blocks or not other_text.startswith(before):
        return None
    closing = markers.closing(markers.tail, is_last=True)
    if closing is None:
        return None
    text_end = len(text) - len(markers.tail)
    return Turn(start=len(head) + len(header), text_end=text_end, end=text_end + len(closing))


def _start(content: str, text: str, tail: str) -> int | None:
    """Where an answer begins that stands before the text's end, as it is or without outer white space."""
    if not text.endswith(tail):
        return None
    stop = len(text) - len(tail)
    for answer in forms(content):
        if text.endswith(answer, 0, stop):
            return stop - len(answer)
    return None


def forms(content: str) -> tuple[str, ...]:
    """An answer as templates write it: as it is, and without white space at an end."""
    return content, content.strip(), content.lstrip("\n"), content.lstrip(), content.rstrip()

"""Transcripts: a whole conversation as one text, as Anthropic's HH-RLHF writes it.

    "\\n\\nHuman: Hi\\n\\nAssistant: Hello" -> read_transcript -> messages

White space around a turn belongs to the form, not to the turn.
"""

from __future__ import annotations

import re

from minimind.data.messages import Message
from minimind.data.sources import RowError

_ROLES = {"Human": "user", "Assistant": "assistant"}
_START = re.compile(r"\s*(?:Human|Assistant):")
_TURN = re.compile(r"(?:\A\s*|\r?\n\r?\n)(Human|Assistant):")
# A turn that the text does not set off as a paragraph.
_WITHIN = re.compile(r"\bAssistant:")
_NO_PARAGRAPH = "an 'Assistant:' in it has no blank line before it, so it begins no turn"


def is_transcript(text: str) -> bool:
    """Whether a text begins as a transcript does."""
    return _START.match(text) is not None


def read_transcript(text: str) -> list[Message]:
    """The turns of a text that `is_transcript`."""
    _, *parts = _TURN.split(text)
    return [{"role": _ROLES[name], "content": said.strip()} for name, said in zip(parts[::2], parts[1::2], strict=True)]


def prompt_of_transcript(place: str, text: str) -> list[Message]:
    """The turns of a prompt, which ends with a human turn or with the beginning of an assistant turn, `Assistant:`.

    Raises:
        RowError: it ends with an assistant turn that says something, or its turns are no paragraphs.
    """
    turns = read_transcript(text)
    if turns[-1]["role"] == "assistant":
        last = turns.pop()
        if last["content"] or not turns:
            raise RowError(f"{place!r} is a transcript that ends with an assistant turn, not with 'Assistant:'")
    elif turns[-1]["content"].endswith("Assistant:"):
        raise RowError(f"{place!r} is a transcript that ends with a human turn; {_NO_PARAGRAPH}")
    return turns


def conversation_of_transcript(column: str, text: str) -> list[Message]:
    """The turns of a half.

    Raises:
        RowError: it is no transcript, or does not end with an assistant turn.
    """
    if not is_transcript(text):
        raise RowError(f"{column!r} is no transcript, which begins with 'Human:'")
    turns = read_transcript(text)
    if turns[-1]["role"] != "assistant":
        why = f"; {_NO_PARAGRAPH}" if _WITHIN.search(turns[-1]["content"]) else ""
        raise RowError(f"{column!r} is a transcript that ends with a human turn{why}")
    return turns

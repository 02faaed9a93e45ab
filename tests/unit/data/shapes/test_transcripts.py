"""Transcripts: where turns begin, and what a prompt and a half must end with."""

from __future__ import annotations

import pytest

from minimind.data.shapes.transcripts import (
    conversation_of_transcript,
    is_transcript,
    prompt_of_transcript,
    read_transcript,
)
from minimind.data.sources import RowError
from tests.conftest import conversation


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: q\n\nAssistant: a", conversation("Hi", "Hello", "q", "a")),
        ("Human: Hi \n\nAssistant:Hello\n", conversation("Hi", "Hello")),
        (
            "\n\nHuman: one\n\ntwo\nAssistant: no turn\n\nAssistant: a",
            conversation("one\n\ntwo\nAssistant: no turn", "a"),
        ),
        ("\n\nHuman: Hi\n\nAssistant:", conversation("Hi", "")),
        ("\r\n\r\nHuman: Hi\r\n\r\nAssistant: a\r\nb", conversation("Hi", "a\r\nb")),
        ("\n\nHuman: Human: Hi\n\nAssistant: a", conversation("Human: Hi", "a")),
    ],
)
def test_turns_of_a_transcript(text, turns):
    assert is_transcript(text)
    assert read_transcript(text) == turns


@pytest.mark.parametrize("text", ["", "Hi", "Humans: Hi", "The\n\nHuman: Hi\n\nAssistant: a", "human: Hi"])
def test_other_texts(text):
    assert not is_transcript(text)
    with pytest.raises(RowError, match="'chosen' is no transcript, which begins with 'Human:'"):
        conversation_of_transcript("chosen", text)


def test_a_half_ends_with_an_assistant_turn():
    with pytest.raises(RowError, match="'rejected' is a transcript that ends with a human turn"):
        conversation_of_transcript("rejected", "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye")


def test_a_turn_that_is_no_paragraph_is_named():
    for read in (conversation_of_transcript, prompt_of_transcript):
        with pytest.raises(RowError, match="ends with a human turn; an 'Assistant:' in it has no blank line before it"):
            read("chosen", "Human: Hi\nAssistant:")


def test_a_prompt_ends_where_an_answer_follows():
    assert prompt_of_transcript("prompt", "\n\nHuman: Hi\n\nAssistant:") == conversation("Hi", "")[:1]
    assert prompt_of_transcript("prompt", "\n\nHuman: Hi") == conversation("Hi", "")[:1]
    for text in ("\n\nHuman: Hi\n\nAssistant: Sure,", "\n\nAssistant:"):
        with pytest.raises(RowError, match="'prompt' is a transcript that ends with an assistant turn, not with"):
            prompt_of_transcript("prompt", text)

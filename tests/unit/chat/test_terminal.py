"""The terminal side of a conversation."""

from __future__ import annotations

import io
import os

import pytest

from minimind.chat.terminal import Terminal
from minimind.errors import DataError
from minimind.generation.batch import Answer


class Echo:
    """A speaker that answers with the message in capitals."""

    def __init__(self, name, tokenizer=None, ended=True):
        self.name, self.tokenizer, self.ended = name, tokenizer, ended
        self.conversation, self.heard = self, []

    def clear(self):
        self.heard.append("cleared")

    def answer(self, text, streamer=None):
        if text == "long":
            raise DataError("the message has 9 tokens")
        if text == "stop":
            raise KeyboardInterrupt
        if streamer is not None:
            streamer.on_finalized_text(text[:2].upper())
            streamer.on_finalized_text(text[2:].upper(), stream_end=True)
        return Answer(ids=[], text=text.upper(), ended=self.ended)

    def remember(self, text, answer):
        assert answer.text == text.upper()
        self.heard.append(text)


class Wide(io.StringIO):
    def isatty(self):
        return True


def reader(*lines):
    left = list(lines)

    def read():
        if not left:
            raise EOFError
        return left.pop(0)

    return read


def test_messages_are_answered_until_the_input_ends(tokenizer):
    speaker, output = Echo("a", tokenizer), io.StringIO()
    Terminal([speaker], output).converse(reader("hello\n", "\n", "/new", "long", "stop", "again"), echo=True)
    assert speaker.heard == ["hello", "cleared", "again"]
    text = output.getvalue()
    assert "> hello\nHELLO\n" in text
    assert "(a new conversation)" in text
    assert "(the message has 9 tokens)" in text
    assert "this turn is forgotten" in text


@pytest.mark.parametrize("word", ["/quit", "/exit"])
def test_the_user_can_quit(word, tokenizer):
    speaker = Echo("a", tokenizer)
    Terminal([speaker], io.StringIO()).converse(reader(word, "more"), echo=False)
    assert speaker.heard == []


def test_a_script_gets_the_answer_alone(tokenizer):
    output = io.StringIO()
    Terminal([Echo("a", tokenizer)], output).say("hello", bare=True)
    assert output.getvalue() == "HELLO\n"
    with pytest.raises(DataError):
        Terminal([Echo("a", tokenizer)], output).say("long", bare=True)


def test_an_answer_that_was_cut_says_so(tokenizer):
    output = io.StringIO()
    Terminal([Echo("a", tokenizer, ended=False)], output).say("hello", bare=True)
    assert output.getvalue() == "HELLO\n(cut at --max_new_tokens)\n"


def test_two_models_are_shown_one_after_the_other_or_side_by_side(monkeypatch):
    for output, expected in ((io.StringIO(), "[a]\nHI\n[b]\nHI (cut"), (Wide(), "│ HI (cut")):
        monkeypatch.setattr("shutil.get_terminal_size", lambda *_, **__: os.terminal_size((100, 20)))
        Terminal([Echo("a"), Echo("b", ended=False)], output).say("hi")
        assert expected in output.getvalue()


@pytest.mark.parametrize("problem", ["long", "stop"])
def test_a_message_that_one_of_two_has_not_answered_is_forgotten_by_both(problem):
    class Short(Echo):
        def answer(self, text, streamer=None):
            return super().answer(problem if text == "for one alone" else text, streamer)

    one, other = Echo("a"), Short("b")
    Terminal([one, other], io.StringIO()).converse(reader("hi", "for one alone", "bye"), echo=False)
    assert one.heard == other.heard == ["hi", "bye"]

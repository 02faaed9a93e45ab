"""The terminal side of a conversation: reads messages, shows answers as they come, or two models' side by side.

line of input -> command (/new, /quit) or message -> each speaker's answer
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import TextIO

from transformers import TextStreamer

from minimind.chat.columns import LEAST_WIDTH, side_by_side
from minimind.chat.speaker import Speaker
from minimind.errors import DataError
from minimind.generation.batch import Answer

QUIT, NEW = ("/quit", "/exit"), "/new"
_CUT = "(cut at --max_new_tokens)"


class Terminal:
    """Speaks with one model, or with two at once.

    Args:
        speakers: one or two.
        output: where answers go; columns are used if it is a terminal that is wide enough.
    """

    def __init__(self, speakers: Sequence[Speaker], output: TextIO) -> None:
        self._speakers, self._output = speakers, output

    def converse(self, read: Callable[[], str], echo: bool) -> None:
        """Answer messages until the input ends or the user quits.

        Args:
            read: gives the next line, or raises EOFError.
            echo: show each message, because the input is not typed.
        """
        while True:
            try:
                text = read().strip()
            except (EOFError, KeyboardInterrupt):
                self._print()
                return
            if echo and text:
                self._print(f"> {text}")
            if text in QUIT:
                return
            if text == NEW:
                for speaker in self._speakers:
                    speaker.conversation.clear()
                self._print("(a new conversation)")
            elif text:
                self.say(text)

    def say(self, text: str, *, bare: bool = False) -> None:
        """Show the answers to one message. One that does not fit is an error for a script, and a line for a person.

        Args:
            bare: of one model, show the answer and nothing else.

        Raises:
            DataError: with `bare`, the message does not fit.
        """
        try:
            self._answer(text, bare)
        except DataError as error:
            if bare:
                raise
            self._print(f"({error})")
        except KeyboardInterrupt:
            self._print("\n(stopped; this turn is forgotten)")

    def _answer(self, text: str, bare: bool) -> None:
        if len(self._speakers) == 1:
            (speaker,) = self._speakers
            answer = speaker.answer(text, _Streamer(speaker, self._output))
            speaker.remember(text, answer)
            self._cut(answer)
            if not bare:
                self._print()
            return
        found = [speaker.answer(text) for speaker in self._speakers]
        # Only when all have answered: both remember the same turns.
        for speaker, answer in zip(self._speakers, found, strict=True):
            speaker.remember(text, answer)
        names = [speaker.name for speaker in self._speakers]
        texts = [one.text.strip() + ("" if one.ended else f" {_CUT}") for one in found]
        width = shutil.get_terminal_size().columns if self._output.isatty() else 0
        if width >= LEAST_WIDTH:
            self._print(side_by_side(f"[{names[0]}]\n{texts[0]}", f"[{names[1]}]\n{texts[1]}", width))
        else:
            for name, shown in zip(names, texts, strict=True):
                self._print(f"[{name}]\n{shown}")
        self._print()

    def _cut(self, answer: Answer) -> None:
        if not answer.ended:
            self._print(_CUT)

    def _print(self, text: str = "") -> None:
        print(text, file=self._output, flush=True)


class _Streamer(TextStreamer):
    """transformers' streamer, to a file."""

    def __init__(self, speaker: Speaker, output: TextIO) -> None:
        super().__init__(speaker.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._output = output

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        print(text, end="\n" if stream_end else "", file=self._output, flush=True)

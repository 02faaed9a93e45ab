"""Finds the assistant's turns in a rendered conversation.

    messages -> rendered                                     R = T0 answer T1 answer T2
    messages with placeholders as answers -> rendered        S = T0   0    T1   1    T2
    compared -> places of the answers in R -> Turn for each assistant message

The place of a turn follows from the messages, never from a search for markers in the text. So text that looks like a
marker, a template that strips or splits answers, and equal answers in several turns cannot move it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from minimind.data.sources import RowError
from minimind.data.template import ChatTemplate, Messages, TemplateInput
from minimind.data.turn_markers import TurnMarkers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """Characters of an assistant's turn in a rendered text: text[start:text_end] is what it says, and
    text[text_end:end] the marker that closes it."""

    start: int
    text_end: int
    end: int


def find_turns(
    template: ChatTemplate, markers: TurnMarkers, messages: Messages, given: TemplateInput
) -> tuple[str, list[Turn]]:
    """The rendered conversation, and its assistant turns in order.

    Raises:
        RowError: the template raises, or a turn cannot be located.
    """
    if template.marks_generation(given):
        text, spans = template.render_generation(messages, given)
        turns = [Turn(start=start, text_end=end, end=end) for start, end in spans]
        _check_number(_assistants(messages), len(turns))
    else:
        text = template.render(messages, given)
        finder = _Finder(template, markers, messages, given, text)
        turns = finder.all_at_once() or finder.one_by_one()
    _check_calls_written(messages, text, turns)
    if given.tools and any(_function_name(tool) not in text for tool in given.tools):
        raise RowError("the chat template does not write the tools")
    if any(one.end > other.start for one, other in itertools.pairwise(turns)):
        raise RowError("the chat template mixes the texts of different assistant turns")
    return text, turns


class _Finder:
    """Locates the turns of one conversation.

    Args:
        text: the rendered conversation.
    """

    def __init__(
        self, template: ChatTemplate, markers: TurnMarkers, messages: Messages, given: TemplateInput, text: str
    ) -> None:
        self.template, self.markers, self.messages, self.given, self.text = template, markers, messages, given, text
        self.assistants = _assistants(messages)
        # A word that the conversation does not contain. Letters and digits pass every template unchanged.
        stem = "Placeholder"
        while stem in text:
            stem += "x"
        self._words = [f"{stem}{number}q" for number in range(len(self.assistants))]

    def all_at_once(self) -> list[Turn] | None:
        """All turns from one rendering, if each answer is in the text as it is or without outer white space."""
        if any(set(self.messages[index]) - {"role", "content"} for index in self.assistants):
            return None  # reasoning and tool calls are rendered too
        parts = self._rendered_with_placeholders(range(len(self.assistants)))
        turns, position = [], len(parts[0])
        if not self.text.startswith(parts[0]):
            return None
        for number, index in enumerate(self.assistants):
            last = number == len(self.assistants) - 1
            after = parts[number + 1]
            stop = self._answer_end(self.messages[index]["content"] or "", position, after, to_end=last)
            if stop is None:
                return None
            start = position - len(parts[number]) + self._header_end(parts[number], number)
            turns.append(Turn(start=start, text_end=stop, end=stop + len(self._closing(after, index, number))))
            position = stop + len(after)
        return turns

    def one_by_one(self) -> list[Turn]:
        """Each turn from a rendering in which it alone has a placeholder, so that everything around it is the row's."""
        return [self._one(number, index) for number, index in enumerate(self.assistants)]

    def _one(self, number: int, index: int) -> Turn:
        try:
            before, after = self._rendered_with_placeholders([number])
        except RowError:
            # Some templates refuse the result of a tool that was not called: the calls must stay.
            if not self.messages[index].get("tool_calls"):
                raise
            return self._one_calling(number, index)
        header_end = self._header_end(before, number)
        if not self.text.startswith(before[:header_end]):
            raise self._not_found(number)
        closing = self._closing(after, index, number)
        # The whole rest is compared, else the rest without the marker: turns that call tools may end differently.
        for rest, marker in ((after, closing), (after[len(closing) :], "")):
            text_end = len(self.text) - len(rest)
            if text_end >= header_end and self.text.endswith(rest) and (marker or rest or not after):
                return Turn(start=header_end, text_end=text_end, end=text_end + len(marker))
        raise self._not_found(number)

    def _one_calling(self, number: int, index: int) -> Turn:
        """A turn with tool calls: between the generation prompt before it and the end of the conversation up to it."""
        before = self.template.render(self.messages[:index], self.given, generation_prompt=True)
        header_end = self._header_end(before, number)
        upto = self.template.render(self.messages[: index + 1], self.given)
        if not (self.text.startswith(before[:header_end]) and self.text.startswith(upto) and len(upto) > header_end):
            raise self._not_found(number)
        return Turn(start=header_end, text_end=len(upto), end=len(upto))

    def _rendered_with_placeholders(self, numbers: Sequence[int]) -> list[str]:
        """Text before, between and after the placeholders of these turns."""
        messages: list[Mapping[str, Any]] = list(self.messages)
        for number in numbers:
            index = self.assistants[number]
            messages[index] = {"role": messages[index]["role"], "content": self._words[number]}
        rest, parts = self.template.render(messages, self.given), []
        found = sum(rest.count(self._words[number]) == 1 for number in numbers)
        missing = len(numbers) - found
        _check_number(self.assistants, len(self.assistants) - missing)
        for number in numbers:
            part, word, rest = rest.partition(self._words[number])
            if not word:
                raise RowError("the chat template changes the order of the assistant's turns")
            parts.append(part)
        return [*parts, rest]

    def _header_end(self, before: str, number: int) -> int:
        """Where the turn starts in the text before its placeholder; reasoning after the header is part of it."""
        header = self.markers.header
        place = before.rfind(header)  # an empty header is found at the end
        if place < 0:
            raise self._not_found(number)
        return place + len(header)

    def _answer_end(self, content: str, position: int, after: str, *, to_end: bool) -> int | None:
        """Where an answer that starts at `position` ends, given the text after it; None if it is not there."""
        for answer in (content, content.strip(), content.lstrip("\n"), content.lstrip(), content.rstrip()):
            stop = position + len(answer)
            fits = self.text.startswith(answer, position) and self.text.startswith(after, stop)
            if fits and (not to_end or stop + len(after) == len(self.text)):
                return stop
        return None

    def _closing(self, after: str, index: int, number: int) -> str:
        """The marker that closes the turn, at the start of the text after its answer."""
        markers = self.markers
        ends = (markers.last_end, markers.end) if index == len(self.messages) - 1 else (markers.end, markers.last_end)
        for end in ends:
            if after.startswith(end):
                return end
        raise RowError(f"assistant turn {number + 1}: the chat template does not close it as it closes other turns")

    def _not_found(self, number: int) -> RowError:
        return RowError(f"assistant turn {number + 1} of {len(self.assistants)} cannot be located in the rendering")


def _assistants(messages: Messages) -> list[int]:
    """Indices of the assistant's messages."""
    return [index for index, message in enumerate(messages) if message["role"] == "assistant"]


def _check_calls_written(messages: Messages, text: str, turns: Sequence[Turn]) -> None:
    """Raises RowError if a template leaves out the names of called tools: the model would learn to call none."""
    for index, turn in zip(_assistants(messages), turns, strict=True):
        for call in messages[index].get("tool_calls") or ():
            if _function_name(call) not in text[turn.start : turn.end]:
                raise RowError(f"the chat template does not write the tool calls of message {index}")


def _function_name(tool: Any) -> str:
    """Name of a tool, or of the tool that a call names; empty if it has none."""
    function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return str(function.get("name", "")) if isinstance(function, Mapping) else ""


def _check_number(assistants: Sequence[int], found: int) -> None:
    """Raises RowError if a turn is missing."""
    if len(assistants) != found:
        turns = "turn" if len(assistants) == 1 else "turns"
        raise RowError(f"{len(assistants)} assistant {turns}, {found} found in the rendering of the chat template")

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

from minimind.data.compared_turn import Turn, are_comparable, compared_turn, forms
from minimind.data.sources import RowError
from minimind.data.template import ChatTemplate, Messages, TemplateInput
from minimind.data.turn_markers import TurnMarkers


def find_turns(
    template: ChatTemplate,
    markers: TurnMarkers,
    messages: Messages,
    given: TemplateInput,
    other: Messages | None = None,
) -> tuple[str, list[Turn]]:
    """The rendered conversation, and its assistant turns in order.

    Args:
        other: the other half of the pair, if it is rendered as well; it changes no result.

    Raises:
        RowError: the template raises, or a turn cannot be located.
    """
    if template.marks_generation(given):
        text, spans = template.render_generation(messages, given)
        _check_number(_assistants(messages), len(spans))
        turns = _generated(template, markers, messages, given, text, spans)
    else:
        text = template.render(messages, given)
        compared = _by_other(template, markers, messages, given, text, other)
        turns = compared or _Finder(template, markers, messages, given, text).turns()
    _check_written(messages, text, turns)
    if given.tools and template.render(messages, dataclasses.replace(given, tools=None)) == text:
        raise RowError("the chat template does not write the tools")
    if any(one.end > other.start for one, other in itertools.pairwise(turns)):
        raise RowError("the chat template mixes the texts of different assistant turns")
    return text, turns


def _by_other(
    template: ChatTemplate,
    markers: TurnMarkers,
    messages: Messages,
    given: TemplateInput,
    text: str,
    other: Messages | None,
) -> list[Turn]:
    """The only turn of a conversation, found by the other half; none if that does not tell it."""
    if other is None or not are_comparable(messages, other):
        return []
    try:
        other_text = template.render(other, given)
    except RowError:
        return []
    turn = compared_turn(markers, messages[-1], text, other[-1], other_text)
    return [] if turn is None else [turn]


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
        # Words that the conversation does not contain. Letters and digits pass every template unchanged.
        attempt = next(number for number in itertools.count() if f"Placeholder{number}q" not in text)
        self._words = [f"Placeholder{attempt}q{number}z" for number in range(len(self.assistants))]

    def turns(self) -> list[Turn]:
        """All turns, in order."""
        return self.all_at_once() or self.one_by_one()

    def all_at_once(self) -> list[Turn] | None:
        """All turns from one rendering, if each answer is in the text as it is or without outer white space."""
        if any(set(self.messages[index]) - {"role", "content"} for index in self.assistants):
            return None  # reasoning and tool calls are rendered too
        parts = self._rendered_with_placeholders(range(len(self.assistants)))
        turns: list[Turn] = []
        position = len(parts[0])
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
        return [
            (self._one_calling(number, index) if self.messages[index].get("tool_calls") else None)
            or self._one(number, index)
            for number, index in enumerate(self.assistants)
        ]

    def _one(self, number: int, index: int) -> Turn:
        before, after = self._rendered_with_placeholders([number])
        header_end = self._header_end(before, number)
        if not self.text.startswith(before[:header_end]):
            raise self._not_found(number)
        closing = self._closing(after, index, number)
        # The whole rest is compared, else the rest without the marker: turns that call tools may end differently.
        following = self.messages[index + 1].get("content") if index + 1 < len(self.messages) else None
        for rest, marker in ((after, closing), (after[len(closing) :], "")):
            text_end = len(self.text) - len(rest)
            # Without its calls a template may leave out their results: these must not be taken for the turn's text.
            if (
                self.messages[index].get("tool_calls")
                and following
                and following.strip() in self.text[header_end:text_end]
            ):
                break
            if text_end >= header_end and self.text.endswith(rest) and (marker or rest or not after):
                return Turn(start=header_end, text_end=text_end, end=text_end + len(marker))
        raise self._not_found(number)

    def _one_calling(self, number: int, index: int) -> Turn | None:
        """A turn with tool calls: between the generation prompt before it and the end of the conversation up to it.

        A placeholder cannot stand for calls: some templates refuse or change the results of tools that were not called.
        None if the template renders a part of the conversation in another way than the whole.
        """
        try:
            before = self.template.render(self.messages[:index], self.given, generation_prompt=True)
            upto = self.template.render(self.messages[: index + 1], self.given)
        except RowError:
            return None
        header, rest = self.markers.header, self.markers.prompt_rest
        start = len(before) - len(rest)
        found = header and before.endswith(header + rest) and self.text.startswith(before[:start])
        if not (found and self.text.startswith(upto) and len(upto) > start):
            return None
        ends = (self.markers.last_end, self.markers.end)
        closing = next((end for end in ends if end and upto.endswith(end, start)), "")
        return Turn(start=start, text_end=len(upto) - len(closing), end=len(upto))

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
        head, found, block = before.rpartition(header) if header else (before, "", "")
        if (found or not header) and block in self.markers.blocks:
            return len(head) + len(found)
        # What was found may be another message's text: only what the template itself writes here can be the header.
        written = self._written_before(number)
        if not before.endswith(written):
            raise self._not_found(number)
        _, found, block = written.rpartition(header)
        # Without a header, as between two answers in some templates, the turn is the answer alone.
        return len(before) - (len(block) if found else 0)

    def _written_before(self, number: int) -> str:
        """What the template itself writes between the message before a turn and the turn's answer."""
        other = self._words[0] + "m"
        messages: list[Mapping[str, Any]] = [{**message, "content": other} for message in self.messages]
        messages[self.assistants[number]] = {"role": "assistant", "content": self._words[number]}
        before, word, _ = self.template.render(messages, self.given).partition(self._words[number])
        if not word:
            raise self._not_found(number)
        return before.rpartition(other)[2]

    def _answer_end(self, content: str, position: int, after: str, *, to_end: bool) -> int | None:
        """Where an answer that starts at `position` ends, given the text after it; None if it is not there."""
        for answer in forms(content):
            stop = position + len(answer)
            fits = self.text.startswith(answer, position) and self.text.startswith(after, stop)
            if fits and (not to_end or stop + len(after) == len(self.text)):
                return stop
        return None

    def _closing(self, after: str, index: int, number: int) -> str:
        """The marker that closes the turn, at the start of the text after its answer."""
        closing = self.markers.closing(after, is_last=index == len(self.messages) - 1)
        if closing is None:
            raise RowError(f"assistant turn {number + 1}: the chat template does not close it as it closes other turns")
        return closing

    def _not_found(self, number: int) -> RowError:
        return RowError(f"assistant turn {number + 1} of {len(self.assistants)} cannot be located in the rendering")


def _assistants(messages: Messages) -> list[int]:
    """Indices of the assistant's messages."""
    return [index for index, message in enumerate(messages) if message["role"] == "assistant"]


def _generated(
    template: ChatTemplate,
    markers: TurnMarkers,
    messages: Messages,
    given: TemplateInput,
    text: str,
    spans: Sequence[tuple[int, int]],
) -> list[Turn]:
    """Turns from the spans of `{% generation %}` blocks, without headers that a block contains.

    transformers counts the characters of a block wrongly inside macros and filters, so each span is compared with the
    place that placeholders give, or, where these give none, with the answer's text.

    Raises:
        RowError: a span is not at the turn's place.
    """
    try:
        found: Sequence[Turn | None] = _Finder(template, markers, messages, given, text).turns()
    except RowError:
        found = [None] * len(spans)
    turns = []
    for index, (start, end), turn in zip(_assistants(messages), spans, found, strict=True):
        if markers.header and text.startswith(markers.header, start) and start + len(markers.header) <= end:
            start += len(markers.header)
        answer = (messages[index].get("content") or "").strip()
        if turn is not None:
            # White space after the end marker may belong to either.
            inside = turn.start <= start <= end <= turn.end or not text[turn.end : end].strip()
            right = inside and turn.start <= start and (start < turn.text_end or not answer)
        else:
            right = answer in text[start:end]
        if not right:
            raise RowError("the {% generation %} blocks of the chat template are not at the assistant's turns")
        turns.append(Turn(start=start, text_end=end, end=end))
    return turns


def _check_written(messages: Messages, text: str, turns: Sequence[Turn]) -> None:
    """Check that tool calls, and answers beside them, are in the text: some templates leave them out.

    Raises:
        RowError: names what is missing.
    """
    for index, turn in zip(_assistants(messages), turns, strict=True):
        written, calls = text[turn.start : turn.end], messages[index].get("tool_calls") or ()
        for call in calls:
            if _function_name(call) not in written:
                raise RowError(f"the chat template does not write the tool calls of message {index}")
        if calls and (messages[index].get("content") or "").strip() not in written:
            raise RowError(f"the chat template does not write the text of message {index} beside its tool calls")


def _function_name(tool: Any) -> str:
    """Name of a tool, or of the tool that a call names; empty if it has none."""
    function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return str(function.get("name", "")) if isinstance(function, Mapping) else ""


def _check_number(assistants: Sequence[int], found: int) -> None:
    """Raises RowError if a turn is missing."""
    if len(assistants) != found:
        turns = "turn" if len(assistants) == 1 else "turns"
        raise RowError(f"{len(assistants)} assistant {turns}, {found} found in the rendering of the chat template")

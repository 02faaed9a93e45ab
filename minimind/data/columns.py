"""Columns beside `chosen` and `rejected`: those that say what the conversation is are used, the others are named.

    row -> read_columns -> Columns -> complete: system message, prompt and half as one conversation

| column | value | use |
| --- | --- | --- |
| prompt | messages, or the text of a user turn | put before halves that have only the answer, else compared |
| system | text | the system message; compared with one that the messages contain |
| tools | list of objects, or a JSON text of one | given to the chat template |
| chat_template_kwargs | object, or a JSON text of one | given to the chat template |
| score_chosen, score_rejected | numbers | kept with the pair; the names of `_SCORES` mean the same |

Null, an empty text and an empty list mean "not given".
"""

from __future__ import annotations

import dataclasses
import decimal
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from minimind.data.messages import (
    Message,
    differing_keys,
    has_developer,
    listed,
    messages_of_text,
    parse_json_text,
    read_messages,
    shown,
)
from minimind.data.sources import RowError

_USED = ("system", "tools", "chat_template_kwargs")
# Columns with the scores of the chosen and of the rejected answer.
_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)
NO_SCORES = (math.nan, math.nan)
# What a text-only model would answer without having seen it.
_MEDIA = ("images", "videos", "audios")
# Arguments of apply_chat_template that are not variables of a template; `documents` is one.
NO_VARIABLES = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters, "messages"} - {
    "documents",
    "kwargs",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """The values of a row's columns beside its halves.

    Attributes:
        prompt: checked messages, or the text of a user turn; None if not given.
        place: the column of the prompt, for error messages.
        system: text of the system message; None if not given.
        tools: descriptions of functions, as the chat template takes them; None if not given.
        template_kwargs: further variables of the chat template.
        unused: names of the columns that have a value and are not used, in the order of the row.
        has_developer: the prompt has a message of the role `developer`, read as a system message.
        scores: of the chosen and of the rejected answer; NaN if not given.
    """

    prompt: list[Message] | str | None = None
    place: str = "prompt"
    system: str | None = None
    tools: list[Any] | None = None
    template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unused: tuple[str, ...] = ()
    has_developer: bool = False
    scores: tuple[float, float] = NO_SCORES

    def complete(self, half: str, messages: list[Message]) -> list[Message]:
        """The whole conversation of a half: its messages with the system message and the prompt that they lack.

        Args:
            half: "chosen" or "rejected", for error messages.
            messages: checked messages of the half.

        Raises:
            RowError: the columns contradict the messages.
        """
        prompt = self.prompt if isinstance(self.prompt, list) else []
        own, turns = _split_system(messages)
        prompt_system, prompt_turns = _split_system(prompt)
        column = [{"role": "system", "content": self.system}] if self.system is not None else []
        system = _agreed_system({"the column 'system'": column, repr(self.place): prompt_system, repr(half): own})
        if isinstance(self.prompt, str):
            return [*system, *self._after_text(self.prompt, half, turns)]
        if turns[: len(prompt_turns)] == prompt_turns:
            return [*system, *turns]
        if turns and turns[0]["role"] == "user":
            where = self._first_difference(messages, len(own), prompt, len(prompt_system))
            raise RowError(f"{half!r} does not begin with {self.place!r}: {where}")
        return [*system, *self._after_messages(prompt_turns, half, turns)]

    def _after_text(self, prompt: str, half: str, turns: list[Message]) -> list[Message]:
        """The turns of a half behind a prompt that is the text of a user turn."""
        users = [message["content"].strip() for message in turns if message["role"] == "user"]
        said, answers_first = prompt.strip() in users, bool(turns) and turns[0]["role"] == "assistant"
        if not said and (answers_first or not users):
            return [{"role": "user", "content": prompt}, *turns]
        if said and not answers_first:
            return turns
        raise RowError(
            f"{self.place!r} is no user turn of {half!r}: {shown(prompt)}; correct it, or rename the column if "
            "it is no part of the conversation"
        )

    def _after_messages(self, prompt: list[Message], half: str, turns: list[Message]) -> list[Message]:
        """The turns of a half, an answer and perhaps later turns, behind the turns of a prompt."""
        # A user turn that both have would be said twice.
        if said := [message for message in prompt if message["role"] == "user" and message in turns]:
            text = shown(said[0]["content"])
            raise RowError(
                f"{half!r} contains the user turn {text} of {self.place!r}, but does not begin with {self.place!r}"
            )
        # Probably the answer of one half, which the other half would get too.
        if prompt and turns and prompt[-1]["role"] == turns[0]["role"] == "assistant":
            raise RowError(f"{self.place!r} ends with an assistant turn, and {half!r} begins with one")
        return [*prompt, *turns]

    def _first_difference(self, messages: list[Message], start: int, prompt: list[Message], prompt_start: int) -> str:
        """Where a half differs from its prompt; each begins at its own start, after a system message."""
        index = 0
        while start + index < len(messages) and messages[start + index] == prompt[prompt_start + index]:
            index += 1
        place = f"message {prompt_start + index} of {self.place!r}"
        if start + index == len(messages):
            return f"it ends before {place}"
        one, other = messages[start + index], prompt[prompt_start + index]
        if one["role"] != other["role"]:
            return f"its message {start + index} has the role {one['role']}, {place} the role {other['role']}"
        return f"its message {start + index} and {place} differ in {listed(differing_keys(one, other))}"


def read_columns(row: Mapping[str, Any], own: Iterable[str], place: str = "prompt") -> Columns:
    """Check and read the columns of a row.

    Args:
        row: the row as JSON object.
        own: columns that the caller reads itself.
        place: the column that has the prompt.

    Raises:
        RowError: a column has a value of a wrong type.
    """
    given = {name: value for name, value in row.items() if value is not None}
    prompt, system = (given.get(name) or None for name in (place, "system"))
    if isinstance(prompt, str):
        prompt = messages_of_text(repr(place), prompt) or prompt
    if isinstance(prompt, list):
        prompt = read_messages(place, prompt)
    elif not isinstance(prompt, str | None):
        raise RowError(f"{place!r} is neither a list of messages nor a text: {shown(prompt)}")
    if not isinstance(system, str | None):
        raise RowError(f"'system' is not a text: {shown(system)}")
    if media := [name for name in _MEDIA if given.get(name)]:
        raise RowError(f"the row has {listed(media)}; only text is trained on")
    score_columns, scores = _read_scores(given)
    used = {place, *_USED, *own, *score_columns}
    return Columns(
        prompt=prompt,
        place=place,
        system=system,
        tools=_read_tools(given.get("tools")),
        template_kwargs=_read_template_kwargs(given.get("chat_template_kwargs")),
        unused=tuple(name for name in given if name not in used),
        has_developer=has_developer(row.get(place)),
        scores=scores,
    )


def number_of(value: Any) -> float | None:
    """A finite number, also a decimal one and one that is written as a text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | decimal.Decimal):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _read_scores(given: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[float, float]]:
    """The columns with the scores of both answers, and their values; a column that is no number is one of no use."""
    for names in _SCORES:
        if names[0] not in given:
            continue
        chosen, rejected = (number_of(given.get(name)) for name in names)
        if chosen is not None and rejected is not None:
            return names, (chosen, rejected)
    return (), NO_SCORES


def _read_tools(value: Any) -> list[Any] | None:
    if isinstance(value, str):
        value = parse_json_text("'tools'", value) if value.strip() else None
    if not value and isinstance(value, list | None):
        return None
    if not isinstance(value, list):
        raise RowError(f"'tools' is not a list of objects: {shown(value)}")
    # Columns of a fixed type keep each function as a JSON text, since functions have different fields.
    tools = [parse_json_text("an entry of 'tools'", tool) if isinstance(tool, str) else tool for tool in value]
    for tool in tools:
        if not isinstance(tool, dict):
            raise RowError(f"an entry of 'tools' is not an object: {shown(tool)}")
    return tools


def _read_template_kwargs(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str):
        value = parse_json_text("'chat_template_kwargs'", value) if value.strip() else {}
    if not value and isinstance(value, dict | list | None):
        return {}
    if not isinstance(value, dict):
        raise RowError(f"'chat_template_kwargs' is not an object: {shown(value)}")
    if taken := sorted(NO_VARIABLES.intersection(value)):
        raise RowError(f"'chat_template_kwargs' has the key {taken[0]!r}, which is no variable of a chat template")
    # Column formats write null for every key that another row has.
    return {name: item for name, item in value.items() if item is not None}


def _split_system(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """The system message at the start, if there is one, and the other messages."""
    number = int(bool(messages) and messages[0]["role"] == "system")
    return list(messages[:number]), list(messages[number:])


def _agreed_system(given: Mapping[str, list[Message]]) -> list[Message]:
    """The system message that all places give; the last place's own if it has one, since it may have further keys."""
    found = {place: message[0] for place, message in given.items() if message}
    for place, other in zip(found, list(found)[1:], strict=False):
        if found[place]["content"] != found[other]["content"]:
            raise RowError(f"the system messages of {place} and of {other} differ")
    return [list(found.values())[-1]] if found else []

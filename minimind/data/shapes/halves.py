"""Helpers of the conversions: halves, prompts and histories in the form of messages.

a row's columns -> half_columns, answer, history -> messages -> pair or text_pair -> checked_row
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from minimind.data.columns import read_columns
from minimind.data.messages import Message, messages_of_text, parsed_list, shown
from minimind.data.rows import PreferenceRow, checked_row
from minimind.data.shapes.shape import HALVES, Row, given_columns, is_given
from minimind.data.shapes.transcripts import conversation_of_transcript, is_transcript, prompt_of_transcript
from minimind.data.shapes.turns import messages_of_turns
from minimind.data.sources import RowError

# What a chat template writes before a text: as part of the text it would become the user's own words.
_CONTROL = re.compile(r"\s*(<\|\w+\|>|<start_of_turn>|<bos>|<s>|\[INST\]|### (?:Instruction|Human):)")
_USER_LABEL = re.compile(r"\s*(?:Human|User|USER|用户|人类|问) ?[:：]|Below is an instruction")
_ASSISTANT_LABEL = re.compile(r"((?:### )?(?:Response|Assistant|ASSISTANT|AI|GPT|Bot|助手|答) ?[:：])\s*\Z")
# Characters from which on two answers do not begin with a prompt by chance.
_REPEATED = 16


def pair(
    row: Row,
    *,
    chosen: Any,
    rejected: Any,
    read: Iterable[str] = (),
    place: str = "prompt",
    prompt: Any = None,
    **columns: Any,
) -> PreferenceRow:
    """A checked pair.

    Args:
        row: the whole row; its columns `system`, `tools` and `chat_template_kwargs` are used as everywhere.
        chosen, rejected: lists of messages, if the row is valid.
        read: columns that the conversion has read.
        place: the column of the prompt, for messages.
        prompt: replaces the column's value, if given.
        columns: replace columns of the row.

    Raises:
        RowError: the pair is wrong.
    """
    values = {**row, **columns} if prompt is None else {**row, **columns, place: prompt}
    columns_read = read_columns(values, own={"chosen", "rejected", *read}, place=place)
    return checked_row(chosen=chosen, rejected=rejected, columns=columns_read)


def half_columns(row: Row) -> tuple[str, str]:
    """The columns of the better and the worse answer.

    Raises:
        RowError: there are none, or more than one pair of them.
    """
    given = given_columns(row)
    found = [names for names in HALVES if given.issuperset(names)]
    if len(found) > 1:
        raise RowError(f"there are two pairs of answers, {found[0]} and {found[1]}; rename the one that is not meant")
    if not found:
        raise RowError("'chosen' and 'rejected' are not both there")
    return found[0]


def answer(column: str, value: Any) -> list[Any]:
    """The messages of a half that is a text, a message or a list of messages; the messages are not checked."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list):
        return value
    raise RowError(f"{column!r} is neither a text nor a list of messages: {shown(value)}")


def text_pair(
    row: Row, *, place: str, question: Any, chosen: Any, rejected: Any, read: Iterable[str] = (), **columns: Any
) -> PreferenceRow:
    """A checked pair of two answers to a prompt that is a text; the column `history` has earlier turns.

    Args:
        place: the column of the prompt, for messages.
        question: the prompt: a user's words, a transcript, or the JSON text of messages.
        chosen, rejected: each a text, a message or a list of messages.
        read, columns: as for `pair`.

    Raises:
        RowError: the pair is wrong, or it cannot be told where the prompt ends.
    """
    if not isinstance(question, str):
        raise RowError(f"{place!r} is not a text: {shown(question)}")
    prompt = prompt_of_text(place, question)
    given = {"chosen": chosen, "rejected": rejected}
    if is_transcript(question):
        halves = {half: answer_in_transcript(half, value) for half, value in given.items()}
    else:
        _check_not_repeated(place, question.strip(), list(given.values()))
        halves = {half: answer(half, value) for half, value in given.items()}
    earlier = history("history", row.get("history")) if place != "history" else []
    return pair(row, **halves, read={"history", *read}, place=place, prompt=[*earlier, *prompt], **columns)


def answer_pair(
    row: Row, *, place: str, chosen: Any, rejected: Any, read: Iterable[str] = (), **columns: Any
) -> PreferenceRow:
    """A checked pair of two answers to the prompt in a column: a text, messages or turns.

    Args:
        place, chosen, rejected, read, columns: as for `text_pair`.

    Raises:
        RowError: the pair is wrong.
    """
    question = row[place]
    if isinstance(question, str):
        return text_pair(row, place=place, question=question, chosen=chosen, rejected=rejected, read=read, **columns)
    halves = {half: answer(half, value) for half, value in (("chosen", chosen), ("rejected", rejected))}
    return pair(row, **halves, read=read, place=place, prompt=messages_of_turns(place, question), **columns)


def check_listed_answers(column: str, answers: Iterable[Any]) -> None:
    """Refuses answers of a list that are JSON texts of messages: the model would learn to write that JSON.

    Raises:
        RowError: an answer is such a text and ends with what an assistant says.
    """
    for index, value in enumerate(answers):
        place = f"answer {index} of {column!r}"
        messages = messages_of_text(place, value) if isinstance(value, str) else None
        if messages and (messages[-1].get("role") == "assistant" or messages[-1].get("from") == "gpt"):
            raise RowError(
                f"{place} is the JSON text of messages; give the list itself, or, if it is what the assistant says, "
                "a message"
            )


def answer_in_transcript(half: str, value: Any) -> list[Any]:
    """A half behind a transcript that ends with `Assistant:`: how it goes on, or the whole transcript again."""
    if not isinstance(value, str):
        return answer(half, value)
    return conversation_of_transcript(half, value if is_transcript(value) else f"Assistant: {value}")


def prompt_of_text(place: str, text: str) -> list[Message]:
    """The messages of a prompt that is a text: a user's words, a transcript, or the JSON text of messages.

    Raises:
        RowError: it is blank, or written as a chat template writes it.
    """
    if not text.strip():
        raise RowError(f"{place!r} is blank")
    if is_transcript(text):
        return prompt_of_transcript(place, text)
    if (messages := messages_of_text(repr(place), text)) is not None:
        turns: list[Message] = messages_of_turns(place, messages)
        return turns
    found = _CONTROL.match(text) or (_USER_LABEL.match(text) and _ASSISTANT_LABEL.search(text))
    if found:
        raise RowError(f"{place!r} is written as a chat template writes it ({found[1]!r}); give the user's words alone")
    return [{"role": "user", "content": text}]


def _check_not_repeated(place: str, prompt: str, answers: list[Any]) -> None:
    """Refuses answers that both begin with their prompt: they are probably prompt and answer in one text."""
    if len(prompt) >= _REPEATED and all(isinstance(one, str) and one.lstrip().startswith(prompt) for one in answers):
        raise RowError(
            f"'chosen' and 'rejected' begin with {place!r}; give the answers alone, or messages if they do repeat it"
        )


def history(place: str, value: Any) -> list[Message]:
    """The messages of earlier turns, given as a list of [question, answer]; null and empty: none."""
    value = parsed_list(repr(place), value)
    if not is_given(value):
        return []
    if not (isinstance(value, list) and all(map(_is_exchange, value))):
        raise RowError(f"{place!r} is not a list of [question, answer]: {shown(value)}")
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for turn in value for role, text in zip(roles, turn, strict=True)]


def _is_exchange(turn: Any) -> bool:
    return isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn)

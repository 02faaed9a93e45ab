"""The shape of rows with one answer and a label: TRL's unpaired preferences, KTO's rows of LLaMA-Factory and ms-swift.

row -> the label, and a conversation that ends with the answer -> AnswerRow; losses of pairs refuse it (registry.py)
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from minimind.data.columns import Columns, number_of, read_columns
from minimind.data.messages import Message, parse_json_text, shown
from minimind.data.rows import AnswerRow, checked_answer
from minimind.data.shapes.halves import answer, answer_in_transcript, history, prompt_of_text
from minimind.data.shapes.options import ShapeOptions
from minimind.data.shapes.shape import HALVES, Row, RowShape, given_columns
from minimind.data.shapes.transcripts import is_transcript
from minimind.data.shapes.turns import messages_of_turns
from minimind.data.sources import RowError

# Columns of the label: TRL's and ms-swift's, LLaMA-Factory's.
LABELS = ("label", "kto_tag")
# Columns of a whole conversation that ends with the answer.
_WHOLE = ("messages", "conversations")
# Columns of the prompt and of its answer.
_PAIRS = (("prompt", "completion"), ("query", "response"), ("instruction", "output"))
_ANSWERS = tuple(answer for _, answer in _PAIRS)
# Columns of a second answer: a row that has one is a pair.
_SECOND = frozenset({*(name for names in HALVES for name in names), "rejected_response", "rejected_messages"})
_TRUE, _FALSE = ("true", "yes"), ("false", "no")


def is_labelled(given: frozenset[str]) -> bool:
    """Whether a row has the columns of one answer with a label, and none of a second answer."""
    return not given.isdisjoint(LABELS) and not given.isdisjoint({*_WHOLE, *_ANSWERS}) and given.isdisjoint(_SECOND)


def label_of(value: Any) -> bool | None:
    """Whether an answer is desirable: a switch, 1 or 0, or one of these as a text; None for anything else."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and (text := value.strip().lower()) in (*_TRUE, *_FALSE):
        return text in _TRUE
    number = number_of(value)
    return bool(number) if number in (0, 1) else None


def _fits(row: Row, given: frozenset[str]) -> bool:
    # A list of answers is another shape's.
    return is_labelled(given) and not isinstance(row.get("output"), list)


def _convert(row: Row, options: ShapeOptions) -> list[AnswerRow]:
    given = given_columns(row)
    if not given.isdisjoint(_SECOND):
        raise RowError("a label and a second answer are both there; a row is one answer with a label, or a pair")
    labels = [name for name in LABELS if name in given]
    if len(labels) > 1:
        raise RowError("both 'label' and 'kto_tag' are there; remove one of them")
    label = label_of(row[labels[0]])
    if label is None:
        raise RowError(f"{labels[0]!r} is neither true nor false: {shown(row[labels[0]])}")
    found = [names for names in _PAIRS if names[1] in given]
    whole = [name for name in _WHOLE if name in given]
    if len(found) + len(whole) != 1:
        listed = ", ".join(repr(name) for name in (*whole, *(names[1] for names in found)))
        raise RowError(f"more than one column may have the answer: {listed}; rename those that do not")
    if whole:
        return [_whole(row, whole[0], labels[0], label, options)]
    return [_completion(row, *found[0], labels[0], label, options)]


def _whole(row: Row, column: str, labelled: str, label: bool, options: ShapeOptions) -> AnswerRow:
    turns = row[column]
    if isinstance(turns, str):
        turns = parse_json_text(repr(column), turns)
    messages = messages_of_turns(column, turns, options.names)
    columns = read_columns(row, own={column, labelled})
    return checked_answer(column=column, messages=messages, label=label, columns=columns)


def _completion(row: Row, place: str, column: str, labelled: str, label: bool, options: ShapeOptions) -> AnswerRow:
    messages, columns = completion(row, place, column, options, read={labelled})
    return checked_answer(column=column, messages=messages, label=label, columns=columns)


def completion(
    row: Row, place: str, column: str, options: ShapeOptions, read: Collection[str] = ()
) -> tuple[Any, Columns]:
    """The messages of one answer, and the columns of its row with the prompt.

    Args:
        place, column: of the prompt and of the answer.
        read: columns that the conversion reads besides.

    Raises:
        RowError: the prompt is missing, or a column has a value of a wrong type.
    """
    if place not in given_columns(row):
        raise RowError(f"{column!r} is there, {place!r} is not")
    question, read = row[place], {column, "history", *read}
    if place == "instruction" and row.get("input"):
        question, read = f"{question}\n{row['input']}", {*read, "input"}
    prompt: list[Message]
    if isinstance(question, str):
        prompt = [*history("history", row.get("history")), *prompt_of_text(place, question)]
    else:
        prompt = messages_of_turns(place, question, options.names)
    columns = read_columns({**row, place: prompt}, own=read, place=place)
    said = row[column]
    if isinstance(question, str) and is_transcript(question) and isinstance(said, str):
        return answer_in_transcript(column, said), columns
    return messages_of_turns(column, answer(column, said), options.names), columns


UNPAIRED = RowShape(
    title="one answer with a label",
    needs=(LABELS, (*_ANSWERS, *_WHOLE)),
    fits=_fits,
    convert=_convert,
)

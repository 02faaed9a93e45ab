"""Shapes with two answers and a label that says which is better: PKU-SafeRLHF, SHP, Chatbot Arena, HelpSteer3.

row -> the comparison whose columns it has -> the better and the worse answer -> checked pair; a tie gives none
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from minimind.data.columns import number_of
from minimind.data.messages import listed, parsed_list, shown
from minimind.data.rows import PreferenceRow
from minimind.data.shapes.halves import answer_pair, pair
from minimind.data.shapes.options import ShapeOptions
from minimind.data.shapes.shape import Row, RowShape, given_columns
from minimind.data.shapes.turns import messages_of_turns
from minimind.data.sources import RowError

# Which answer is better: the first, the second, or neither.
_FIRST, _SECOND, _TIE = 0, 1, None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Comparison:
    """The columns of one way to write a comparison.

    Attributes:
        answers: the columns of the first and of the second answer.
        label: the column that says which is better.
        better: value of the label -> which answer is better; a value that it lacks is damage.
        prompt: None if the answers are whole conversations.
        scores: the columns with the scores of both.
    """

    answers: tuple[str, str]
    label: str
    better: Callable[[Any], int | None]
    prompt: str | None
    scores: tuple[str, str] | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return (*([self.prompt] if self.prompt else []), *self.answers, self.label)


def _by_name(names: Mapping[str, int | None]) -> Callable[[Any], int | None]:
    def better(label: Any) -> int | None:
        # Column formats may have numbers as fractions or as texts.
        number = number_of(label)
        return names[str(label) if number is None else f"{number:g}"]

    return better


def _by_sign(label: Any) -> int | None:
    number = number_of(label)
    if number is None:
        raise KeyError(label)
    return _TIE if number == 0 else _FIRST if number < 0 else _SECOND


_WAYS = (
    _Comparison(
        prompt="prompt",
        answers=("response_0", "response_1"),
        label="better_response_id",
        better=_by_name({"0": _FIRST, "1": _SECOND}),
    ),
    _Comparison(
        prompt="history",
        answers=("human_ref_A", "human_ref_B"),
        label="labels",
        better=_by_name({"1": _FIRST, "0": _SECOND}),
        scores=("score_A", "score_B"),
    ),
    _Comparison(
        prompt=None,
        answers=("conversation_a", "conversation_b"),
        label="winner",
        better=_by_name(
            {"model_a": _FIRST, "model_b": _SECOND, **dict.fromkeys(("tie", "tie (bothbad)", "both_bad"), _TIE)}
        ),
    ),
    _Comparison(prompt="context", answers=("response1", "response2"), label="overall_preference", better=_by_sign),
)


def _convert(row: Row, options: ShapeOptions) -> list[PreferenceRow]:
    given = given_columns(row)
    ways = [way for way in _WAYS if given.issuperset(way.columns)]
    if len(ways) != 1:
        texts = [listed(way.columns) for way in ways or _WAYS]
        raise RowError(f"the row has {'more than one' if ways else 'none'} of these: {'; '.join(texts)}")
    (way,) = ways
    try:
        better = way.better(row[way.label])
    except KeyError as error:
        raise RowError(f"{way.label!r} does not say which answer is better: {shown(row[way.label])}") from error
    if better is _TIE:
        return []
    order = (better, 1 - better)
    chosen, rejected = (row[way.answers[index]] for index in order)
    read = {*way.columns, *(way.scores or ())}
    if way.prompt is None:
        halves = {name: messages_of_turns(name, parsed_list(repr(name), row[name])) for name in way.answers}
        one = pair(row, chosen=halves[way.answers[better]], rejected=halves[way.answers[1 - better]], read=read)
    else:
        one = answer_pair(row, place=way.prompt, chosen=chosen, rejected=rejected, read=read)
    if way.scores is None:
        return [one]
    better_score, worse_score = (number_of(row.get(way.scores[index])) for index in order)
    scores = (math.nan if better_score is None else better_score, math.nan if worse_score is None else worse_score)
    return [dataclasses.replace(one, scores=scores)]


COMPARISON = RowShape(
    title="two answers and a label",
    needs=(*zip(*(way.answers for way in _WAYS), strict=True), tuple(way.label for way in _WAYS)),
    fits=lambda row, given: any(given.issuperset(way.columns) for way in _WAYS),
    convert=_convert,
)

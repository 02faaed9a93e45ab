"""Shapes with several answers, each with a score or a rank: UltraFeedback's, and answers beside a list of scores.

row -> ScoredAnswer of each answer -> `pairs_of`, --pairing, --score_gap -> checked pairs
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

from minimind.data.columns import number_of
from minimind.data.messages import listed, parsed_list, shown
from minimind.data.rows import PreferenceRow
from minimind.data.shapes.halves import answer_pair, check_listed_answers
from minimind.data.shapes.options import ALL, BEST_WORST, ShapeOptions
from minimind.data.shapes.shape import CONVERSATIONS, Row, RowShape, given_columns
from minimind.data.sources import RowError

_PROMPTS = ("prompt", "question", "instruction", "query", *sorted(CONVERSATIONS))
_ANSWERS = ("responses", "answers", "completions", "generations", "candidates")
# Columns of numbers, one for each answer. Of ranks, 1 is the best.
_SCORES, _RANKS = ("scores", "ratings", "rewards"), ("ranks",)
# Keys of an answer that is an object; the first that it has is read.
_TEXT_KEYS = ("response", "answer", "text", "content", "completion", "generation")
_SCORE_KEYS, _RANK_KEYS = ("overall_score", "score", "rating", "reward", "fine-grained_score"), ("rank",)
# Scores are decimal fractions: the gap between 0.3 and 0.1 is 0.2.
_ROUNDING = 1e-9
# With --pairing all a row of this many answers makes 4950 pairs.
_MOST_ANSWERS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredAnswer:
    """One of several answers.

    Attributes:
        value: a text, a message or a list of messages.
        quality: higher is better.
        score: the quality, or NaN where that is a rank.
        unused: keys that were not read.
    """

    value: Any
    quality: float
    score: float
    unused: tuple[str, ...] = ()


def pairs_of(qualities: Sequence[float], pairing: str, gap: float) -> list[tuple[int, int]]:
    """Which answers make pairs.

    Args:
        qualities: of each answer; higher is better.
        pairing: BEST_WORST: the first of the best with the last of the worst; ALL: each with each worse one; ADJACENT:
            each with the next in order.
        gap: the least difference in quality. Equal ones never make a pair.

    Returns:
        Indices of the better and of the worse answer of each pair, those of the best answer first.
    """
    order = sorted(range(len(qualities)), key=lambda index: -qualities[index])
    if pairing == BEST_WORST:
        candidates = [(order[0], order[-1])]
    else:
        candidates = list(itertools.combinations(order, 2) if pairing == ALL else itertools.pairwise(order))
    least = gap - _ROUNDING

    def apart(better: int, worse: int) -> bool:
        return qualities[better] > qualities[worse] and qualities[better] - qualities[worse] >= least

    return [candidate for candidate in candidates if apart(*candidate)]


def _convert(row: Row, options: ShapeOptions) -> list[PreferenceRow]:
    place, column = _one_of("the prompt", row, _PROMPTS), _one_of("the answers", row, _ANSWERS)
    values = parsed_list(repr(column), row[column])
    if not isinstance(values, list) or len(values) < 2:
        raise RowError(f"{column!r} is not a list of two or more answers: {shown(values)}")
    if len(values) > _MOST_ANSWERS:
        raise RowError(f"{column!r} has {len(values)} answers; {_MOST_ANSWERS} are the most")
    beside = not given_columns(row).isdisjoint((*_SCORES, *_RANKS))
    numbers = _one_of("the scores", row, (*_SCORES, *_RANKS)) if beside else None
    answers = (
        _within(column, values)
        if numbers is None
        else _beside(column, values, numbers, parsed_list(repr(numbers), row[numbers]))
    )
    check_listed_answers(column, (one.value for one in answers))
    unused = dict.fromkeys(f"{column}[].{key}" for one in answers for key in one.unused)
    rows = []
    for better, worse in pairs_of([one.quality for one in answers], options.pairing, options.score_gap):
        chosen, rejected = answers[better], answers[worse]
        if chosen.value == rejected.value:
            raise RowError(f"answers {better} and {worse} of {column!r} are the same, but their scores differ")
        read = {column, numbers or column}
        one = answer_pair(row, place=place, chosen=chosen.value, rejected=rejected.value, read=read)
        scores = (chosen.score, rejected.score)
        rows.append(dataclasses.replace(one, unused=(*one.unused, *unused), scores=scores))
    return rows


def _one_of(what: str, row: Row, columns: Sequence[str]) -> str:
    """The only one of some columns that a row has.

    Raises:
        RowError: it has none or several.
    """
    given = given_columns(row)
    found = [name for name in columns if name in given]
    if len(found) != 1:
        several = f"{listed(found)} may all be {what}; rename those that are not"
        raise RowError(several if found else f"{what} is not there")
    return found[0]


def _beside(column: str, values: list[Any], numbers: str, given: Any) -> list[ScoredAnswer]:
    """Answers whose scores or ranks are in a column of their own."""
    if not isinstance(given, list) or len(given) != len(values):
        size = f"of {len(given)}" if isinstance(given, list) else shown(given)
        raise RowError(f"{numbers!r} is not a list of {len(values)} numbers, one for each of {column!r}, but {size}")
    is_rank = numbers in _RANKS
    answers = []
    for index, (value, number) in enumerate(zip(values, given, strict=True)):
        key = _first_key(value, _TEXT_KEYS) if isinstance(value, dict) and "role" not in value else None
        score = _number(f"{numbers!r}, answer {index}", number)
        answers.append(
            ScoredAnswer(
                value=value if key is None else value[key],
                quality=-score if is_rank else score,
                score=math.nan if is_rank else score,
                unused=() if key is None else _others(value, key),
            )
        )
    return answers


def _within(column: str, values: list[Any]) -> list[ScoredAnswer]:
    """Answers that are objects with their score or rank."""
    answers = []
    for index, value in enumerate(values):
        place = f"answer {index} of {column!r}"
        if not isinstance(value, dict):
            raise RowError(f"{column!r} have no scores: {listed((*_SCORES, *_RANKS))} are not there")
        text, score, rank = (_first_key(value, keys) for keys in (_TEXT_KEYS, _SCORE_KEYS, _RANK_KEYS))
        if text is None:
            raise RowError(f"{place} has no text under {listed(_TEXT_KEYS)}")
        if (score is None) == (rank is None):
            which = "neither a score nor" if score is None else f"both {score!r} and"
            raise RowError(f"{place} has {which} a rank")
        number = _number(f"{place}, {score or rank!r}", value[score or rank])
        answers.append(
            ScoredAnswer(
                value=value[text],
                quality=-number if score is None else number,
                score=math.nan if score is None else number,
                unused=_others(value, text, score or rank),
            )
        )
    return answers


def _first_key(value: dict[str, Any], keys: Sequence[str]) -> str | None:
    return next((key for key in keys if value.get(key) is not None), None)


def _others(value: dict[str, Any], *read: str | None) -> tuple[str, ...]:
    return tuple(key for key, item in value.items() if key not in read and item is not None)


def _number(place: str, value: Any) -> float:
    number = number_of(value)
    if number is None:
        raise RowError(f"{place}: not a number: {shown(value)}")
    return number


def _fits_ultrafeedback(row: Row, given: frozenset[str]) -> bool:
    values = row["completions"]
    return isinstance(values, list) and any(isinstance(one, dict) and "response" in one for one in values)


def _fits_answers(row: Row, given: frozenset[str]) -> bool:
    if "completions" in given and _fits_ultrafeedback(row, given):
        return False
    # Without scores such a column is no more than a remark beside 'chosen' and 'rejected'.
    lists = [row[name] for name in _ANSWERS if name in given and isinstance(row[name], list)]
    within = any(
        isinstance(one, dict) and _first_key(one, (*_SCORE_KEYS, *_RANK_KEYS)) for one in itertools.chain(*lists)
    )
    return bool(lists) and (within or not given.isdisjoint((*_SCORES, *_RANKS)))


ULTRAFEEDBACK = RowShape(
    title="UltraFeedback",
    needs=(("completions",), ("instruction", "prompt")),
    fits=_fits_ultrafeedback,
    convert=_convert,
    several=True,
)
ANSWERS = RowShape(
    title="several answers with scores",
    needs=(_ANSWERS, _PROMPTS),
    fits=_fits_answers,
    convert=_convert,
    several=True,
)

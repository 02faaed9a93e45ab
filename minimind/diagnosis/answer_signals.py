"""Numbers about generated answers: do they end, repeat themselves, stay in the language?

answers of one sampling -> answer_signals -> {name: mean}

Distinct n-grams are those of Li et al. (2016), of each answer by itself: their share among all n-grams of the answer.
It falls when an answer goes round in circles, and does not depend on how many answers there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from minimind.data.scripts import CODE, MIXED, NONE, script_of

# Lengths of the n-grams.
_NGRAMS = (1, 2, 3)
SIGNALS = ("length", *(f"distinct_{n}" for n in _NGRAMS), "ended", "empty", "language_switched")
# Scripts that say nothing about a language.
_NO_LANGUAGE = (MIXED, CODE, NONE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratedAnswer:
    """One answer.

    Attributes:
        ids: its tokens, with the one that ends it.
        text: without special tokens.
        ended: the model ended it; False: it was cut at the limit.
        expected: a text in the language that the answer should have: the data's answer, else the prompt.
    """

    ids: Sequence[int]
    text: str
    ended: bool
    expected: str


def answer_signals(answers: Sequence[GeneratedAnswer]) -> dict[str, float]:
    """Means over answers, by the names of `SIGNALS`; one that no answer has is left out.

    length: in tokens, without the one that ends an answer. distinct_n: of the answers with at least n tokens. ended,
    empty, language_switched: shares; the last one of the answers that have a language, and whose `expected` has one.
    """
    ids = [answer.ids[:-1] if answer.ended else answer.ids for answer in answers]
    values: dict[str, list[float]] = {
        "length": [float(len(one)) for one in ids],
        **{f"distinct_{n}": [distinct_share(one, n) for one in ids if len(one) >= n] for n in _NGRAMS},
        "ended": [float(answer.ended) for answer in answers],
        "empty": [float(not answer.text.strip()) for answer in answers],
        "language_switched": [
            float(switched) for one in answers if (switched := language_switched(one.text, one.expected)) is not None
        ],
    }
    return {name: sum(found) / len(found) for name, found in values.items() if found}


def distinct_share(ids: Sequence[int], n: int) -> float:
    """Share of the n-grams of at least n tokens that are distinct: 1 without any repetition."""
    ngrams = list(zip(*(ids[start:] for start in range(n)), strict=False))
    return len(set(ngrams)) / len(ngrams)


def language_switched(answer: str, expected: str) -> bool | None:
    """Whether two texts are in different scripts (`scripts.py`); None if one of them has none of its own."""
    found = script_of(answer), script_of(expected)
    if any(script in _NO_LANGUAGE for script in found):
        return None
    return found[0] != found[1]

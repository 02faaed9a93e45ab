"""What answers, or texts, are like, read in a sample: their scripts, empty and one-word ones, refusals.

texts of each item, e.g. (chosen, rejected), with its place -> read_sample -> AnswerReport
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from minimind.data.scripts import CODE, MIXED, NONE, SCRIPTS, script_of, word_count
from minimind.inspection.items import ItemKind

# Phrases with which models refuse, where an answer begins. Any list misses some and hits some that are none.
REFUSALS = (
    *("i cannot", "i can't", "i can not", "i'm unable to", "i am unable to", "i'm not able to", "i am not able to"),
    *(
        "i'm sorry, but",
        "i'm sorry but",
        "i am sorry, but",
        "sorry, but i",
        "sorry, i can",
        "i must decline",
        "i won't",
    ),
    *("as an ai language model", "as a language model", "cannot assist with", "can't help with"),
    *("抱歉,", "抱歉我", "对不起,", "很遗憾,", "我无法", "我不能", "无法提供", "无法回答", "不便回答"),
    *("作为一个ai语言模型", "作为ai语言模型", "作为人工智能语言模型", "作为一个人工智能语言模型", "作为一个语言模型"),
)
# Characters of an answer in which a refusal is looked for.
_BEGINNING = 120
# Examples of refusals, and characters of each.
_NAMED, _SHOWN = 5, 160
_REASONING = re.compile(r"^\s*<think>.*?(?:</think>|\Z)", re.DOTALL)
_PUNCTUATION = str.maketrans({"’": "'", "`": "'", "，": ","})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refusal:
    """An answer to learn that reads like a refusal: where it is from, and its beginning."""

    place: str
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerReport:
    """Counts over a sample of items; a tuple has one number for each text of an item: chosen, rejected answers.

    Attributes:
        pairs: size of the sample.
        scripts: script -> numbers of texts; see scripts.py.
        other_script: pairs whose answers have letters of two different scripts; None without two answers.
        empty, one_word: numbers of texts.
        refusals: numbers of answers; none, if the texts are no answers.
        examples: answers to learn that read like refusals.
    """

    pairs: int
    scripts: Mapping[str, tuple[int, ...]]
    other_script: int | None
    empty: tuple[int, ...]
    one_word: tuple[int, ...]
    refusals: tuple[int, ...]
    examples: tuple[Refusal, ...]


def read_sample(sample: Iterable[tuple[str, tuple[str, ...]]], kind: ItemKind) -> AnswerReport:
    """Count over items, given as place, (chosen, rejected), or the one text that there is."""
    number = len(kind.halves)
    scripts: list[Counter[str]] = [Counter() for _ in range(number)]
    counts = {name: [0] * number for name in ("empty", "one_word", "refusals")}
    examples: list[Refusal] = []
    pairs = other_script = 0
    for place, texts in sample:
        pairs += 1
        answers = [said(text) if kind.replies else text.strip() for text in texts]
        found = [script_of(answer) for answer in answers]
        other_script += len(set(found)) > 1 and not {MIXED, CODE, NONE}.intersection(found)
        for half, answer in enumerate(answers):
            scripts[half][found[half]] += 1
            words = word_count(answer)
            counts["empty"][half] += not answer
            counts["one_word"][half] += words == 1
            counts["refusals"][half] += (refuses := kind.replies and is_refusal(answer))
            if refuses and half == 0 and len(examples) < _NAMED:
                examples.append(Refusal(place=place, text=answer[:_SHOWN]))
    by_script = {name: tuple(of_half[name] for of_half in scripts) for name in SCRIPTS}
    return AnswerReport(
        pairs=pairs,
        scripts={name: numbers for name, numbers in by_script.items() if any(numbers)},
        other_script=other_script if kind.has_two else None,
        empty=tuple(counts["empty"]),
        one_word=tuple(counts["one_word"]),
        refusals=tuple(counts["refusals"]) if kind.replies else (),
        examples=tuple(examples),
    )


def said(answer: str) -> str:
    """An answer without the reasoning before it, which is not said to the user."""
    return _REASONING.sub("", answer).strip()


def is_refusal(answer: str) -> bool:
    """Whether an answer, without its reasoning, begins like a refusal."""
    beginning = answer[:_BEGINNING].lower().translate(_PUNCTUATION)
    return any(phrase in beginning for phrase in REFUSALS)

"""The English sentences: names in braces, language, and order of the topics."""

from __future__ import annotations

import string

from minimind.demo.chinese import CHINESE
from minimind.demo.english import ENGLISH


def names(text: str) -> set[str]:
    """Names in the braces of a template."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def test_questions_name_the_subject_and_answers_the_result() -> None:
    for topic in ENGLISH.topics:
        assert all(names(question) == {"x"} for question in topic.questions)
        assert all({"y"} <= {name.lower() for name in names(answer)} <= {"x", "y"} for answer in topic.answers)
        assert names(topic.about) == {"x"}


def test_sentences_are_english() -> None:
    for topic in ENGLISH.topics:
        assert "".join([*topic.questions, *topic.answers, topic.about]).isascii()
    assert "".join([*ENGLISH.systems, *ENGLISH.openers, *ENGLISH.closers, *ENGLISH.taunts]).isascii()
    # One refusal is in the wrong language, so that DPO also teaches the language of the answer.
    assert [refusal.isascii() for refusal in ENGLISH.refusals] == [True, True, True, True, False]


def test_topics_are_those_of_chinese_in_the_same_order() -> None:
    """The number of words in a fact differs, but sums have the same results at the same place."""
    results = [[fact.answer for fact in language.topics[5].facts] for language in (ENGLISH, CHINESE)]
    assert results[0] == results[1] == ["5", "8", "6", "9", "7", "10", "8", "11", "9", "12", "10", "13"]

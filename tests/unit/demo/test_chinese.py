"""The Chinese sentences: names in braces and language."""

from __future__ import annotations

from minimind.demo.chinese import CHINESE
from tests.unit.demo.test_english import names


def is_chinese(text: str) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in text)


def test_questions_name_the_subject_and_answers_the_result() -> None:
    for topic in CHINESE.topics:
        assert all(names(question) == {"x"} for question in topic.questions)
        assert all({"y"} <= names(answer) <= {"x", "y"} for answer in topic.answers)
        assert names(topic.about) == {"x"}


def test_sentences_are_chinese() -> None:
    for topic in CHINESE.topics:
        assert all(is_chinese(sentence) for sentence in (*topic.questions, *topic.answers))
    assert all(map(is_chinese, (*CHINESE.systems, *CHINESE.openers, *CHINESE.closers, *CHINESE.taunts)))
    # One refusal is in the wrong language, so that DPO also teaches the language of the answer.
    assert [is_chinese(refusal) for refusal in CHINESE.refusals] == [True, True, True, True, False]


def test_sentences_are_joined_without_a_space() -> None:
    assert CHINESE.space == ""

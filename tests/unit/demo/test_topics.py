"""Topics: facts from the tables, with the sentences of a language."""

from __future__ import annotations

import pytest

from minimind.demo.chinese import CHINESE
from minimind.demo.english import ENGLISH
from minimind.demo.topics import Fact, Language, topics_of


def test_topics_take_the_columns_of_their_language() -> None:
    phrases = {"sum": ("what {x} is", ("What is {x}?",), ("{x} is {y}.",))}
    (english,), (chinese,) = topics_of(0, phrases), topics_of(2, phrases)
    assert english.facts[0] == Fact(asked="2 plus 3", answer="5")
    assert chinese.facts[0] == Fact(asked="2加3", answer="5")
    assert (english.about, english.questions, english.answers) == ("what {x} is", ("What is {x}?",), ("{x} is {y}.",))
    assert len(english.facts) == 12


def test_sums_are_correct() -> None:
    (topic,) = topics_of(0, {"sum": ("", (), ())})
    for fact in topic.facts:
        first, second = fact.asked.split(" plus ")
        assert int(first) + int(second) == int(fact.answer)


@pytest.mark.parametrize("language", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_every_topic_has_five_questions_for_twelve_facts(language: Language) -> None:
    assert len(language.topics) == 10
    for topic in language.topics:
        assert len(topic.facts) == len(set(topic.facts)) == 12
        assert len(set(topic.questions)) == 5
        assert len(set(topic.answers)) == 3

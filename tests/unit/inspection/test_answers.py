"""What is counted in answers: scripts, empty and one-word answers, refusals."""

from __future__ import annotations

import pytest

from minimind.data.scripts import CHINESE, LATIN, NONE
from minimind.inspection.answers import Refusal, is_refusal, read_sample, said
from minimind.inspection.items import ITEMS


def test_counts_over_a_sample():
    sample = [
        ("line 1", ("Horses like hay.", "Hay")),
        ("line 2", ("I’m sorry, but I cannot help with that.", "")),
        ("line 3", ("好的！马喜欢吃干草。", "Look it up yourself.")),
        ("line 4", ("<think>\n\n</think>\n\n42", "As an AI language model, I have no opinion.")),
    ]
    found = read_sample(iter(sample), ITEMS["pairs"])
    assert found.pairs == 4
    assert found.scripts == {CHINESE: (1, 0), LATIN: (2, 3), NONE: (1, 1)}
    # The answers of line 3 are in two scripts; a number and an empty answer have none.
    assert found.other_script == 1
    assert (found.empty, found.one_word, found.refusals) == ((0, 1), (1, 1), (1, 1))
    assert found.examples == (Refusal(place="line 2", text="I’m sorry, but I cannot help with that."),)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("I can't share that.", True),
        ("As an AI language model, I do not eat.", True),
        ("很抱歉，我无法回答这个问题。", True),
        ("作为一个AI语言模型，我没有感情。", True),
        ("<think>The user asks for a poem. I can't rhyme.</think>Here is a poem.", False),
        ("<think>Bad.</think>\n\nI cannot help with this.", True),
        ("I'm sorry to hear that you are ill. Drink tea.", False),
        ("Rain falls. " * 20 + "I cannot stop it.", False),
        ("抱歉让你久等了！", False),
        ("As an AI assistant, I'd be happy to help.", False),
        ("", False),
    ],
)
def test_refusals(answer, expected):
    assert is_refusal(said(answer)) == expected


def test_examples_are_few():
    found = read_sample(((f"line {number}", ("I cannot.", "Yes.")) for number in range(50)), ITEMS["pairs"])
    assert found.refusals == (50, 0)
    assert [one.place for one in found.examples] == [f"line {number}" for number in range(5)]


def test_answers_that_stand_alone_and_texts():
    sample = [("line 1", ("<think>hm</think>I cannot.",)), ("line 2", ("好的！马喜欢吃干草。",)), ("line 3", ("",))]
    found = read_sample(iter(sample), ITEMS["conversations"])
    assert found.scripts == {CHINESE: (1,), LATIN: (1,), NONE: (1,)}
    assert (found.empty, found.refusals, found.other_script) == ((1,), (1,), None)
    assert [one.place for one in found.examples] == ["line 1"]
    # A text is no answer: nothing of it is left out, and nothing refuses.
    found = read_sample(iter(sample), ITEMS["texts"])
    assert (found.empty, found.refusals, found.examples) == ((1,), (), ())

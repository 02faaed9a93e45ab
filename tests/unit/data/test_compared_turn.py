"""The answer of a conversation, found by the other half; the families' templates are in tests/parity/."""

from __future__ import annotations

import pytest

from minimind.data.compared_turn import Turn, are_comparable, compared_turn
from minimind.data.turn_markers import TurnMarkers
from tests.conftest import conversation

MARKERS = TurnMarkers(header="<A>", end="</A>", last_end="</A>", blocks=frozenset({"", "<t></t>"}), tail="</A>\n")


def found(answer: str, text: str, other: str, other_text: str, markers: TurnMarkers = MARKERS) -> Turn | None:
    return compared_turn(markers, {"content": answer}, text, {"content": other}, other_text)


@pytest.mark.parametrize(
    ("answer", "text", "other", "other_text", "expected"),
    [
        ("yes", "<U>q</U><A>yes</A>\n", "no", "<U>q</U><A>no</A>\n", "yes|</A>"),
        ("yes\n", "<U>q</U><A>yes</A>\n", " no", "<U>q</U><A>no</A>\n", "yes|</A>"),
        ("", "<U>q</U><A></A>\n", "no", "<U>q</U><A>no</A>\n", "|</A>"),
        ("aa", "<A>aa</A>\n", "a", "<A>a</A>\n", "aa|</A>"),
        # The block in front belongs to the turn.
        ("yes", "<U>q</U><A><t></t>yes</A>\n", "no", "<U>q</U><A><t></t>no</A>\n", "<t></t>yes|</A>"),
    ],
    ids=["as it is", "stripped", "empty", "one begins as the other", "behind a block"],
)
def test_the_turn_is_between_the_header_and_the_end(answer, text, other, other_text, expected):
    turn = found(answer, text, other, other_text)
    assert turn is not None
    assert f"{text[turn.start : turn.text_end]}|{text[turn.text_end : turn.end]}" == expected


@pytest.mark.parametrize(
    ("answer", "text", "other", "other_text"),
    [
        ("yes", "<A>YES</A>\n", "no", "<A>NO</A>\n"),
        ("yes", "yes<A>yes</A>\n", "no", "no<A>no</A>\n"),
        ("yes", "<A>yes</A>", "no", "<A>no</A>"),
        ("yes", "<A>what yes</A>\n", "no", "<A>what no</A>\n"),
        ("yes", "<B>yes</A>\n", "no", "<B>no</A>\n"),
        ("yes", "<U>p</U><A>yes</A>\n", "no", "<U>q</U><A>no</A>\n"),
    ],
    ids=["changed", "written twice", "another end", "behind other words", "another header", "another prompt"],
)
def test_what_is_not_sure_is_left_to_placeholders(answer, text, other, other_text):
    assert found(answer, text, other, other_text) is None


def test_templates_without_a_header_or_with_an_unknown_end_are_left_to_placeholders():
    texts = ("yes", "q yes</A>\n", "no", "q no</A>\n")
    assert found(*texts, TurnMarkers(header="", end="</A>", last_end="</A>", tail="</A>\n")) is None
    given = ("yes", "<A>yes</B>", "no", "<A>no</B>")
    assert found(*given, TurnMarkers(header="<A>", end="</A>", last_end="</A>", tail="</B>")) is None


def test_conversations_that_can_be_compared():
    one, other = conversation("Hi", "Yes."), conversation("Hi", "No.")
    assert are_comparable(one, other)
    assert not are_comparable(one, conversation("Ho", "No."))
    assert not are_comparable(one, [*other, *conversation("And?", "No.")])
    assert not are_comparable(conversation("a", "b", "c", "d"), conversation("a", "b", "c", "e"))
    assert not are_comparable(one, [other[0], {**other[1], "reasoning_content": "hm"}])
    assert not are_comparable(one[:1], other[:1])

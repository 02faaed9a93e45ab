"""Columns of text, of any script."""

from __future__ import annotations

import pytest

from minimind.chat.columns import side_by_side, width_of, wrap


@pytest.mark.parametrize(("text", "width"), [("abc", 3), ("五月", 4), ("e\u0301", 1), ("“", 1), ("！", 2)])
def test_width_in_columns(text, width):
    assert width_of(text) == width


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", [""]),
        ("one two three", ["one two", "three"]),
        ("abcdefghij", ["abcdefgh", "ij"]),
        ("过了五月就是", ["过了五月", "就是"]),
        ("a\n\nb", ["a", "", "b"]),
        ("12345678 x", ["12345678", "x"]),
    ],
)
def test_lines_are_broken_at_spaces_or_between_characters(text, lines):
    assert wrap(text, 8) == lines


def test_nothing_is_lost_and_no_line_is_too_wide():
    text = "Sure! 问得好！过了五月就是六月。 They eat hay, the food that horses like. " * 4
    for width in range(4, 40):
        lines = wrap(text, width)
        assert max(map(width_of, lines)) <= width
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_two_texts_stand_side_by_side():
    assert side_by_side("五月\nb", "right", 11) == "五月 │ righ\nb    │ t"

"""Rows for pretraining: a text in one of two columns."""

from __future__ import annotations

import json

import pytest

from minimind.data.shapes import Items, ShapeOptions, parse_items
from minimind.data.sources import RowError


def parse(row):
    (found,) = parse_items(json.dumps(row).encode(), ShapeOptions(items=Items.TEXTS))
    return found


def test_a_text_and_what_is_not_used():
    found = parse({"text": "Once", "url": "here", "content": None})
    assert (found.text, found.unused, found.shape) == ("Once", ("url",), "texts")
    assert parse({"content": "Once"}).text == "Once"
    assert parse({"text": "Once", "content": "Twice"}).unused == ("content",)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": 3}, "'text' is no text: 3"),
        ({"body": "Once"}, "unknown row shape"),
        (["Once"], "must be an object"),
        ({"id": 1, "text": ""}, "nothing is in 'text'"),
        ({"text": None, "content": ""}, "nothing is in 'text' and 'content'"),
    ],
)
def test_other_rows_are_refused(row, reason):
    with pytest.raises(RowError, match=reason):
        parse(row)

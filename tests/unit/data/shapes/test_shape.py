"""Columns of a shape: which of them a row has, and which have a value."""

from __future__ import annotations

from minimind.data.shapes.shape import RowShape, given_columns

SHAPE = RowShape(title="x", needs=(("a", "b"), ("b",), ("c",)), fits=lambda row, given: True, convert=lambda row, _: [])


def test_found_and_missing_columns():
    assert SHAPE.found(frozenset("ab")) == ["a", "b"]
    assert SHAPE.missing(frozenset("ab")) == [("c",)]
    assert SHAPE.found(frozenset("bc")) == ["b", "c"]
    assert SHAPE.missing(frozenset()) == [("a", "b"), ("b",), ("c",)]


def test_null_and_empty_values_are_not_given_except_for_empty_answers():
    row = {"a": None, "b": "", "c": [], "d": {}, "e": 0, "f": False, "g": "x", "chosen": "", "rejected": []}
    assert given_columns(row) == {"e", "f", "g", "chosen", "rejected"}
    assert given_columns({"chosen": None, "response_j": ""}) == {"response_j"}

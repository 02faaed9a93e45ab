"""Hints about rows that no shape can read."""

from __future__ import annotations

import pytest

from minimind.data.shapes import parse_rows
from minimind.data.shapes.hints import hint_of_columns, hint_of_values
from minimind.data.sources import RowError

NAMES = frozenset({"prompt", "chosen", "rejected", "score_chosen"})


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        (
            {"Prompt": "q", " chosen": "a", "REJECTED": "b"},
            "rename the columns 'Prompt', ' chosen', 'REJECTED' to 'prompt', 'chosen', 'rejected'",
        ),
        ({"prompt": "q", "score chosen": 1}, "rename the column 'score chosen' to 'score_chosen'"),
        ({"Prompt": "q", "prompt": "p"}, ""),
        ({"version": 1, "data": [{"prompt": "q"}]}, "the rows seem to be in the list 'data'; write that list alone"),
        ({"prompt": "q", "notes": [{"by": "x"}]}, ""),
        ({"prompt": "q", "Chosen": "a", "chosen ": "b"}, ""),
        ({"columns": ["prompt"], "data": [["q"]]}, "it is a whole table in one object"),
        ({"text": "q"}, ""),
    ],
)
def test_hint_of_columns(row, hint):
    found = hint_of_columns(row, NAMES)
    assert found.startswith(f"; {hint}") if hint else found == ""


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"prompt": b"q", "chosen": "a"}, "'prompt' is bytes; write texts as columns of text"),
        ({"prompt": {"0": "q"}, "chosen": {"0": "a"}}, "it is a whole table in one object"),
        ({"prompt": ["q", "p"], "chosen": ["a", "b"]}, "it is a whole table in one object"),
        ({"prompt": ["q"], "chosen": ["a", "b"]}, ""),
        ({"prompt": "q", "chosen": ["a"], "rejected": ["b"]}, ""),
        ({"id": b"7", "prompt": "q", "chosen": 3}, ""),
    ],
)
def test_hint_of_values(row, hint):
    found = hint_of_values(row, NAMES)
    assert found.startswith(f"; {hint}") if hint else found == ""


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"Prompt": "q", "Chosen": "a", "Rejected": "b"}, "unknown row shape: .*; rename the columns 'Prompt', "),
        ({"prompt": "q", "Chosen": "a", "Rejected": "b"}, "looks like TRL's texts: .*; rename the columns 'Chosen', "),
        ({"prompt": ["q"], "chosen": ["a"], "rejected": ["b"]}, "'chosen' .* a whole table|'prompt' .* a whole table"),
    ],
)
def test_rows_are_refused_with_the_hint(row, reason):
    with pytest.raises(RowError, match=reason):
        parse_rows(row)

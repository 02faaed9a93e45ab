"""Cells of tables: texts that are lists of messages, and texts that only look like it."""

from __future__ import annotations

import json

import pytest

from minimind.data.shapes import parse_rows
from minimind.data.sources import RowError
from tests.conftest import conversation, pair

GOOD = pair("What do horses eat?", "Hay.", "Who cares.")
TEXTS = {half: json.dumps(messages) for half, messages in GOOD.items()}
TURNS = {half: json.dumps([{"from": "human", "value": "q"}, {"from": "gpt", "value": half}]) for half in GOOD}


@pytest.mark.parametrize("columns", [{}, {"prompt": "What do horses eat?"}])
def test_messages_in_cells_are_messages(columns):
    (row,) = parse_rows({**columns, **TEXTS})
    assert (row.shape, row.chosen, row.rejected) == ("minimind", GOOD["chosen"], GOOD["rejected"])


def test_turns_in_cells_are_turns():
    (row,) = parse_rows(TURNS)
    assert (row.shape, row.chosen) == ("sharegpt", conversation("q", "chosen"))


def test_in_json_such_a_text_may_be_an_answer():
    with pytest.raises(RowError, match="'chosen' and 'rejected' are JSON texts of messages; give the lists themselves"):
        parse_rows(json.dumps({"prompt": "q", **TEXTS}).encode())


def test_a_list_as_python_writes_it_is_refused():
    texts = {half: str(messages) for half, messages in GOOD.items()}
    for content in ({"prompt": "q", **texts}, json.dumps({"prompt": "q", **texts}).encode()):
        with pytest.raises(RowError, match=r"is a list as Python writes it, not JSON; write it by json\.dumps"):
            parse_rows(content)


@pytest.mark.parametrize(
    "texts", [("[1] is a list", "[2]"), ("[1]", '[{"a": 1}]'), (TEXTS["chosen"], "x"), ("[]", "[1]")]
)
def test_other_texts_are_answers(texts):
    row = dict(zip(("chosen", "rejected"), texts, strict=True))
    for content in ({"prompt": "q", **row}, json.dumps({"prompt": "q", **row}).encode()):
        assert parse_rows(content)[0].chosen == conversation("q", texts[0])

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


def test_one_message_in_a_cell_is_a_message():
    halves = {half: json.dumps({"from": "gpt", "value": half}) for half in GOOD}
    (row,) = parse_rows({"conversations": json.dumps([{"from": "human", "value": "q"}]), **halves})
    assert (row.shape, row.chosen, row.rejected) == (
        "sharegpt",
        conversation("q", "chosen"),
        conversation("q", "rejected"),
    )
    with pytest.raises(RowError, match="'chosen' and 'rejected' are JSON texts of messages"):
        parse_rows(json.dumps({"prompt": "q", **halves}).encode())


def test_messages_in_cells_of_other_names_are_messages():
    halves = {"preferred_output": GOOD["chosen"][1:], "non_preferred_output": GOOD["rejected"][1:]}
    given = {"input": {"messages": GOOD["chosen"][:1]}, **halves}
    (row,) = parse_rows({name: json.dumps(value) for name, value in given.items()})
    assert (row.shape, row.chosen, row.rejected) == ("openai", GOOD["chosen"], GOOD["rejected"])


LISTS = {
    "alpaca": {"instruction": "q", "output": ["a", "b"]},
    "answers": {"prompt": "q", "responses": ["b", "a"], "scores": [1, 2]},
    "ultrafeedback": {
        "instruction": "q",
        "completions": [{"response": "b", "score": 1}, {"response": "a", "score": 2}],
    },
    "swift": {"messages": conversation("q", "a"), "rejected_response": "b"},
    "comparison": {
        "conversation_a": conversation("q", "a"),
        "conversation_b": conversation("q", "b"),
        "winner": "model_a",
    },
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_in_cells_are_lists(name):
    (row,) = parse_rows(
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in LISTS[name].items()}
    )
    assert (row.shape, row.chosen, row.rejected) == (name, conversation("q", "a"), conversation("q", "b"))


def test_history_in_a_cell_is_a_list():
    (row,) = parse_rows({"prompt": "q", "history": '[["Hi", "Hello"]]', "chosen": "a", "rejected": "b"})
    assert row.chosen == conversation("Hi", "Hello", "q", "a")


def test_a_list_of_answers_as_python_writes_it_is_refused():
    with pytest.raises(RowError, match=r"'output' is a text that is not valid JSON .*write it by json\.dumps"):
        parse_rows({"instruction": "q", "output": "['a', 'b']"})


def test_in_json_such_a_text_may_be_an_answer():
    with pytest.raises(RowError, match="'chosen' and 'rejected' are JSON texts of messages; give the lists themselves"):
        parse_rows(json.dumps({"prompt": "q", **TEXTS}).encode())


def test_a_list_as_python_writes_it_is_refused():
    texts = {half: str(messages) for half, messages in GOOD.items()}
    for content in ({"prompt": "q", **texts}, json.dumps({"prompt": "q", **texts}).encode()):
        with pytest.raises(
            RowError, match=r"is a message or a list as Python writes it, not JSON; write it by json\.dumps"
        ):
            parse_rows(content)


@pytest.mark.parametrize(
    "texts",
    [
        ("[1] is a list", "[2]"),
        ('{"role": "admin"}', '{"role": "user"}'),
        ("[1]", '[{"a": 1}]'),
        (TEXTS["chosen"], "x"),
        ("[]", "[1]"),
    ],
)
def test_other_texts_are_answers(texts):
    row = dict(zip(("chosen", "rejected"), texts, strict=True))
    for content in ({"prompt": "q", **row}, json.dumps({"prompt": "q", **row}).encode()):
        assert parse_rows(content)[0].chosen == conversation("q", texts[0])

"""Cells of tables: texts that are lists of messages, and texts that only look like it."""

from __future__ import annotations

import json

import pytest

from minimind.data.shapes import Items, ShapeOptions, parse_answers, parse_items, parse_rows
from minimind.data.shapes.dataset_info import DatasetInfo
from minimind.data.shapes.turns import TurnNames
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


MESSAGES = {half: json.dumps(GOOD[half][1:]) for half in GOOD}


@pytest.mark.parametrize(
    "columns",
    [
        {"response_0": MESSAGES["chosen"], "response_1": MESSAGES["rejected"], "better_response_id": "0"},
        {"response1": MESSAGES["chosen"], "response2": MESSAGES["rejected"], "overall_preference": "-1"},
        {"response": MESSAGES["chosen"], "rejected_response": MESSAGES["rejected"]},
    ],
)
def test_messages_are_read_in_every_pair_of_columns(columns):
    place = {"response1": "context", "response": "query"}.get(next(iter(columns)), "prompt")
    (row,) = parse_rows({place: "What do horses eat?", **columns})
    assert (row.chosen, row.rejected) == (GOOD["chosen"], GOOD["rejected"])


def test_a_rejected_answer_alone_may_be_messages():
    (row,) = parse_rows({"messages": TEXTS["chosen"], "rejected_response": MESSAGES["rejected"]})
    assert (row.shape, row.chosen, row.rejected) == ("swift", GOOD["chosen"], GOOD["rejected"])


ALONE = [("prompt", "completion"), ("query", "response"), ("question", "answer"), ("instruction", "output")]


@pytest.mark.parametrize("columns", ALONE)
def test_an_answer_that_stands_alone_may_be_messages(columns):
    options = ShapeOptions(items=Items.CONVERSATIONS)
    place, column = columns
    for cell in (MESSAGES["chosen"], MESSAGES["chosen"].strip("[]")):
        (row,) = parse_items({place: "What do horses eat?", column: cell}, options)
        assert row.messages == GOOD["chosen"]
    texts = {place: "q", column: MESSAGES["chosen"]}
    with pytest.raises(RowError, match=f"'{column}' is the JSON text of messages; give the list itself"):
        parse_items(json.dumps(texts).encode(), options)


@pytest.mark.parametrize("columns", [columns for columns in ALONE if columns[1] != "answer"])
def test_an_answer_with_a_label_may_be_messages(columns):
    place, column = columns
    (row,) = parse_answers({place: "What do horses eat?", column: MESSAGES["chosen"], "label": "true"})
    assert (row.messages, row.label) == (GOOD["chosen"], True)


def test_an_answer_that_is_json_stays_a_text_in_json():
    for text in ('[{"role": "admin"}]', '[{"role": "user", "content": "q"}]', "{'role': 'user'}", "{'from': 'a'} x"):
        (row,) = parse_items(
            json.dumps({"prompt": "q", "completion": text}).encode(), ShapeOptions(items=Items.CONVERSATIONS)
        )
        assert row.messages == conversation("q", text)


def test_texts_are_read_as_they_are():
    row = {"text": TEXTS["chosen"], "answer": MESSAGES["chosen"]}
    assert parse_items(row, ShapeOptions(items=Items.TEXTS))[0].text == TEXTS["chosen"]


@pytest.mark.parametrize("keys", [("from", "value"), ("speaker", "says")])
def test_columns_are_named_before_their_cells_are_read(keys):
    named = {"conversations": "talk", "chosen": "good", "rejected": "bad"}
    info = DatasetInfo(origin="x", shape="sharegpt", columns=named, names=TurnNames(role=keys[0], content=keys[1]))
    turns = {
        "talk": [dict(zip(keys, ("human", "q"), strict=True))],
        **{name: dict(zip(keys, ("gpt", name), strict=True)) for name in ("good", "bad")},
    }
    (row,) = parse_rows({name: json.dumps(value) for name, value in turns.items()}, ShapeOptions(dataset_info=info))
    assert (row.chosen, row.rejected) == (conversation("q", "good"), conversation("q", "bad"))


@pytest.mark.parametrize("rejected", ["x", "[]", "[1]"])
def test_one_of_two_answers_that_is_messages_is_refused(rejected):
    with pytest.raises(RowError, match="of 'chosen' and 'rejected' one is the JSON text of messages and the other is"):
        parse_rows({"prompt": "q", "chosen": TEXTS["chosen"], "rejected": rejected})
    row = json.dumps({"prompt": "q", "chosen": TEXTS["chosen"], "rejected": rejected}).encode()
    assert parse_rows(row)[0].chosen == conversation("q", TEXTS["chosen"])


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
        ("{'role': 'admin'}", "{'role': 'user'}"),
        ("{'role': 'admin', 'content': 'a'} is it", "No."),
        ("{'role': 'user', 'content': 'q'} is a dictionary", "{'content': 5}"),
        ("[]", "[1]"),
    ],
)
def test_other_texts_are_answers(texts):
    row = dict(zip(("chosen", "rejected"), texts, strict=True))
    for content in ({"prompt": "q", **row}, json.dumps({"prompt": "q", **row}).encode()):
        assert parse_rows(content)[0].chosen == conversation("q", texts[0])

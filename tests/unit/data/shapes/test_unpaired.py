"""One answer with a label: the ways to write it, and what is wrong with rows that are none."""

from __future__ import annotations

import dataclasses
import json

import pytest

from minimind.data.shapes import ShapeOptions, parse_answers, parse_rows
from minimind.data.sources import RowError
from tests.conftest import conversation, pair

QUESTION, ANSWER = conversation("What do horses eat?", "Hay.")
TEXT = QUESTION["content"]
WAYS = {
    "TRL's standard format": {"prompt": TEXT, "completion": "Hay."},
    "TRL's conversational format": {"prompt": [QUESTION], "completion": [ANSWER]},
    "one message": {"prompt": [QUESTION], "completion": ANSWER},
    "messages": {"messages": [QUESTION, ANSWER]},
    "messages as a JSON text": {"messages": json.dumps([QUESTION, ANSWER])},
    "turns": {"conversations": [{"from": "human", "value": TEXT}, {"from": "gpt", "value": "Hay."}]},
    "query and response": {"query": TEXT, "response": "Hay."},
    "instruction and output": {"instruction": "What do", "input": "horses eat?", "output": "Hay."},
    "a transcript": {"prompt": f"\n\nHuman: {TEXT}\n\nAssistant:", "completion": " Hay."},
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("column", ["label", "kto_tag"])
def test_ways_to_write_an_answer(name, column):
    (row,) = parse_answers(json.dumps({**WAYS[name], column: True}).encode())
    expected = [QUESTION, ANSWER]
    if name == "instruction and output":
        expected = [{**QUESTION, "content": "What do\nhorses eat?"}, ANSWER]
    assert (row.messages, row.label, row.unused, row.shape) == (expected, True, (), "unpaired")
    named = parse_answers({**WAYS[name], column: True}, ShapeOptions(data_format="unpaired"))
    assert named == [row]


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (True, True),
        (False, False),
        (1, True),
        (0.0, False),
        ("true", True),
        ("False", False),
        ("1", True),
        ("0", False),
    ],
)
def test_labels_of_any_file(value, label):
    assert parse_answers({"prompt": "q", "completion": "a", "label": value})[0].label is label


def test_further_turns_of_a_transcript_are_no_words_of_its_answer():
    row = {"prompt": "Human: q\n\nAssistant:", "completion": " a\n\nHuman: r\n\nAssistant: b", "label": True}
    with pytest.raises(RowError, match="'completion' has 2 assistant turns"):
        parse_answers(row)


def test_columns_beside_the_answer():
    row = {"messages": [QUESTION, ANSWER], "label": False, "system": "Be kind.", "id": 3, "tools": []}
    (read,) = parse_answers(row)
    assert read.messages == [{"role": "system", "content": "Be kind."}, QUESTION, ANSWER]
    assert (read.prompt, read.unused) == (read.messages[:-1], ("id",))
    turns = parse_answers({"query": "q", "response": "a", "history": [["b", "c"]], "label": 1})[0].messages
    assert [message["content"] for message in turns] == ["b", "c", "q", "a"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "completion": "a", "label": "good"}, "'label' is neither true nor false: 'good'"),
        ({"prompt": "q", "completion": "a", "label": 2}, "'label' is neither true nor false: 2"),
        ({"prompt": "q", "completion": "a", "label": 1, "kto_tag": 1}, "both 'label' and 'kto_tag' are there"),
        ({"prompt": "q", "completion": "a", "messages": [QUESTION, ANSWER], "label": 1}, "may have the answer"),
        ({"prompt": " ", "completion": "a", "label": 1}, "'prompt' is blank"),
        ({"completion": "a", "label": 1}, "'completion' is there, 'prompt' is not"),
        ({"messages": [QUESTION], "label": 1}, "'messages' ends with a message of the role user"),
        ({"messages": [ANSWER], "label": 1}, "'messages' has no user turn"),
        ({"prompt": "q", "completion": [ANSWER, QUESTION, ANSWER], "label": 1}, "'completion' has 2 assistant turns"),
        ({"label": 1}, "looks like one answer with a label: 'label' is there, 'completion' is not"),
    ],
)
def test_rows_that_are_no_labelled_answer(row, reason):
    with pytest.raises(RowError) as caught:
        parse_answers(row)
    assert reason in str(caught.value)


def test_losses_of_pairs_refuse_an_answer_and_say_which_take_it():
    with pytest.raises(RowError, match=r"^it is one answer with a label, and the loss takes pairs .* are kto, bco and"):
        parse_rows({"prompt": "q", "completion": "a", "label": 1})


def test_both_answers_of_a_pair_have_a_label():
    tools = [{"type": "function"}]
    read = parse_answers({**pair("q", "good", "bad"), "tools": tools, "id": 1})
    assert [(row.messages[-1]["content"], row.label) for row in read] == [("good", True), ("bad", False)]
    assert all((row.tools, row.unused, row.shape) == (tools, ("id",), "minimind") for row in read)
    assert len(parse_answers({"prompt": "q", "answers": ["a", "b", "c"], "scores": [1, 2, 3]})) == 2


def test_a_pair_whose_answers_go_on_is_no_pair_of_answers():
    halves = {"chosen": conversation("q", "a", "r", "b"), "rejected": conversation("q", "c", "r", "d")}
    assert len(parse_rows(halves)) == 1
    with pytest.raises(RowError, match="'rejected' does not end with the answer in which the two differ"):
        parse_answers(halves)
    later = {"chosen": conversation("q", "a", "r", "b"), "rejected": conversation("q", "a", "r", "d")}
    assert [len(row.prompt) for row in parse_answers(later)] == [3, 3]


def test_a_label_beside_a_pair_makes_no_answer_of_it():
    row = {**pair("q", "good", "bad"), "label": True}
    assert parse_rows(row)[0].unused == ("label",)
    two = {"instruction": "q", "output": ["good", "bad"], "label": 1}
    assert dataclasses.astuple(parse_rows(two)[0])[4] == ("label",)
    with pytest.raises(RowError, match="a label and a second answer are both there"):
        parse_answers({**row, "prompt": "q", "completion": "a"}, ShapeOptions(data_format="unpaired"))

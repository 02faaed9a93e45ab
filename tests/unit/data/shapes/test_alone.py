"""Shapes of rows for fine-tuning: MiniMind's with tools and thinking, ShareGPT's, OpenAI's, Alpaca's, completions."""

from __future__ import annotations

import json

import pytest

from minimind.data.shapes import Items, ShapeOptions, parse_items
from minimind.data.sources import RowError
from tests.conftest import conversation, pair

OPTIONS = ShapeOptions(items=Items.CONVERSATIONS)
TURNS = conversation("What is 1 + 1?", "2.")
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
CALL = {"name": "add", "arguments": {"a": 1}}


def parse(row, **options):
    (found,) = parse_items(json.dumps(row).encode(), ShapeOptions(items=Items.CONVERSATIONS, **options))
    return found


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"conversations": TURNS}, "conversations"),
        ({"messages": TURNS}, "conversations"),
        ({"messages": json.dumps(TURNS)}, "conversations"),
        (
            {"conversations": [{"from": "human", "value": "What is 1 + 1?"}, {"from": "gpt", "value": "2."}]},
            "conversations",
        ),
        ({"instruction": "What is 1 + 1?", "input": "", "output": "2."}, "instructions"),
        ({"prompt": "What is 1 + 1?", "completion": "2."}, "completions"),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, "completions"),
        ({"query": "What is 1 + 1?", "response": "2."}, "completions"),
    ],
)
def test_a_row_is_recognised(row, shape):
    found = parse(row)
    assert (found.messages, found.shape) == (TURNS, shape)
    assert parse(row, data_format=shape).messages == TURNS


def test_minimind_s_tools_thinking_and_calls():
    """Tools and calls are JSON texts in MiniMind's files, and columns that other rows have are null."""
    row = {
        "conversations": [
            {"role": "system", "content": "Be exact.", "tools": json.dumps([TOOL]), "tool_calls": None},
            {"role": "user", "content": "1 + 1?", "reasoning_content": None},
            {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "2.", "reasoning_content": "The tool says so."},
        ]
    }
    found = parse(row)
    assert found.tools == [TOOL]
    assert found.messages[0] == {"role": "system", "content": "Be exact."}
    assert found.messages[2]["tool_calls"][0]["arguments"] == {"a": 1}
    assert found.messages[4]["reasoning_content"] == "The tool says so."
    assert parse({**row, "tools": json.dumps([TOOL])}).tools == [TOOL]


def test_the_system_message_of_a_column_is_the_first_message():
    found = parse({"instruction": "1 + 1?", "output": "2.", "system": "Be exact.", "history": [["Hi", "Hello"]]})
    assert [message["role"] for message in found.messages] == ["system", "user", "assistant", "user", "assistant"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (pair("Hi", "Yo.", "No."), "unknown row shape"),
        ({"messages": TURNS, "label": True}, "the column 'label' judges answers"),
        ({"conversations": TURNS, "chosen": "2", "rejected": "3"}, "the column 'chosen' judges answers"),
        ({"conversations": TURNS, "messages": TURNS}, "both 'conversations' and 'messages' are there"),
        ({"conversations": TURNS, "prompt": "a", "completion": "b"}, "can be read as a conversation"),
        ({"prompt": "What?"}, "looks like a prompt and its answer: 'prompt' is there, 'completion' is not"),
        ({"conversations": "no JSON"}, "not valid JSON"),
        ({"text": "Once upon a time"}, "unknown row shape"),
        ({"conversations": []}, "nothing is in 'conversations'"),
        (
            {"conversations": [{"role": "system", "content": "", "tools": [TOOL]}, *TURNS], "tools": [{"name": "b"}]},
            "the column 'tools' and the tools of the system message differ",
        ),
    ],
)
def test_other_rows_are_refused(row, reason):
    with pytest.raises(RowError, match=reason):
        parse(row)

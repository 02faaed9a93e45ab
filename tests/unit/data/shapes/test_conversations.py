"""Shapes whose answers are messages: ways to write ShareGPT's, and what two columns of a conversation mean."""

from __future__ import annotations

import json

import pytest

from minimind.data.shapes import ShapeOptions, parse_rows
from minimind.data.sources import RowError
from tests.conftest import conversation, pair

GOOD = pair("What do horses eat?", "Hay.", "Who cares.")
QUESTION = GOOD["chosen"][0]
HUMAN, HAY, RUDE = (
    {"from": name, "value": text}
    for name, text in (("human", "What do horses eat?"), ("gpt", "Hay."), ("gpt", "Who cares."))
)
TURN, WORSE = GOOD["chosen"][1], GOOD["rejected"][1]

WAYS = {
    "turns": {"conversations": [HUMAN], "chosen": HAY, "rejected": RUDE},
    "lists of turns": {"conversations": [HUMAN], "chosen": [HAY], "rejected": [RUDE]},
    "texts": {"conversations": [HUMAN], "chosen": "Hay.", "rejected": "Who cares."},
    "messages": {"messages": [QUESTION], "chosen": TURN, "rejected": WORSE},
    "turns and messages": {"conversations": [HUMAN], "chosen": TURN, "rejected": [WORSE]},
    "whole conversations": {"chosen": [HUMAN, HAY], "rejected": [HUMAN, RUDE]},
    "whole conversations that repeat their prompt": {
        "conversations": [HUMAN],
        "chosen": [HUMAN, HAY],
        "rejected": [HUMAN, RUDE],
    },
    "a prompt of turns": {"prompt": [HUMAN], "chosen": [HAY], "rejected": [RUDE]},
    "a prompt that repeats the question": {
        "prompt": "What do horses eat?",
        "conversations": [HUMAN],
        "chosen": HAY,
        "rejected": RUDE,
    },
    "a JSON text": {
        "conversations": '[{"from": "human", "value": "What do horses eat?"}]',
        "chosen": HAY,
        "rejected": RUDE,
    },
}


@pytest.mark.parametrize("name", WAYS)
def test_ways_to_write_turns(name):
    (row,) = parse_rows(WAYS[name])
    assert (row.shape, row.chosen, row.rejected, row.unused) == ("sharegpt", GOOD["chosen"], GOOD["rejected"], ())


def test_system_turn_tools_and_their_results():
    turns = [
        {"from": "system", "value": "Be kind."},
        HUMAN,
        {"from": "function_call", "value": '{"name": "look_up", "arguments": {"animal": "horse"}}'},
        {"from": "observation", "value": "hay"},
    ]
    (row,) = parse_rows({"conversations": turns, "chosen": HAY, "rejected": RUDE, "tools": '[{"name": "look_up"}]'})
    call = {"type": "function", "function": {"name": "look_up", "arguments": {"animal": "horse"}}}
    assert row.chosen == [
        {"role": "system", "content": "Be kind."},
        QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "hay"},
        TURN,
    ]
    assert row.tools == [{"name": "look_up"}]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"conversations": [HUMAN, HAY], "chosen": HAY, "rejected": RUDE},
            "'conversations' ends with an assistant turn, and 'chosen' begins",
        ),
        ({"conversations": [HUMAN], "chosen": HAY, "rejected": {"from": "gpt"}}, "'rejected' turn 0 has no 'value'"),
        (
            {"conversations": [HUMAN], "chosen": HAY, "rejected": 5},
            "'rejected' is neither a text nor a list of messages: 5",
        ),
        ({"conversations": [HUMAN], "chosen": HUMAN, "rejected": RUDE}, "'chosen' has no assistant turn"),
        (
            {"conversations": [HUMAN, 3], "chosen": HAY, "rejected": RUDE},
            "'conversations' message 1 is not an object with 'role'",
        ),
        (
            {"conversations": {"from": "human"}, "chosen": HAY, "rejected": RUDE},
            "'conversations' is not a list of turns: {",
        ),
        (
            {"conversations": [HUMAN], "messages": [QUESTION], "chosen": HAY, "rejected": RUDE},
            "both 'conversations' and 'messages' are there",
        ),
        (
            {"conversations": [HUMAN], "prompt": "And cows?", "chosen": HAY, "rejected": RUDE},
            "'prompt' is no turn of 'conversations'",
        ),
        (
            {"conversations": [HUMAN], "chosen": [{**HUMAN, "value": "And cows?"}, HAY], "rejected": [HUMAN, RUDE]},
            "'chosen' does not begin with 'conversations'",
        ),
    ],
)
def test_damaged_row(row, reason):
    with pytest.raises(RowError) as caught:
        parse_rows(row)
    assert str(caught.value).startswith(f"read as ShareGPT: {reason}")


def test_a_column_of_messages_that_repeats_a_half_is_not_used():
    for messages in (GOOD["chosen"], GOOD["rejected"], [QUESTION]):
        (row,) = parse_rows({"prompt": "What do horses eat?", "messages": messages, **GOOD})
        assert (row.shape, row.chosen, row.unused) == ("minimind", GOOD["chosen"], ("messages",))


def test_a_half_may_be_a_message_behind_a_prompt():
    (row,) = parse_rows({"prompt": [QUESTION], "chosen": TURN, "rejected": WORSE})
    assert (row.shape, row.chosen) == ("minimind", GOOD["chosen"])


def test_parts_of_a_content_are_joined():
    parts = [{"type": "text", "text": "What do "}, {"type": "text", "text": "horses eat?", "image_url": None}]
    (row,) = parse_rows({half: [{"role": "user", "content": parts}, GOOD[half][1]] for half in GOOD})
    assert row.chosen == conversation("What do horses eat?", "Hay.")


def openai(**changes: object) -> dict:
    row = {"input": {"messages": [QUESTION]}, "preferred_output": [TURN], "non_preferred_output": [WORSE]}
    return {**row, **changes}


def test_tools_of_openai_s_input_are_used_and_its_other_keys_counted():
    given = {"messages": [QUESTION], "tools": [{"name": "look_up"}], "parallel_tool_calls": True, "n": None}
    for value in (given, json.dumps(given)):
        (row,) = parse_rows(openai(input=value, id=1))
        assert (row.shape, row.chosen, row.rejected) == ("openai", GOOD["chosen"], GOOD["rejected"])
        assert (row.tools, row.unused) == ([{"name": "look_up"}], ("id", "input.parallel_tool_calls"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (openai(input={"messages": []}), "read as OpenAI's: 'input' is not an object with a list of 'messages': {"),
        (openai(input="x"), "read as OpenAI's: 'input' is a text that is not valid JSON"),
        (openai(input=3), "read as OpenAI's: 'input' is not an object with a list of 'messages': 3"),
        (openai(preferred_output=3), "read as OpenAI's: 'preferred_output' is neither a text nor a list of messages"),
        (openai(non_preferred_output=[TURN]), "read as OpenAI's: 'chosen' and 'rejected' are the same"),
        (openai(non_preferred_output=None), "looks like OpenAI's: 'preferred_output' and 'input' are there, 'non_pref"),
        (openai(input={"messages": [QUESTION], "tools": [{}]}, tools=[{}]), "read as OpenAI's: both 'tools' and"),
    ],
)
def test_damaged_row_of_openai(row, reason):
    with pytest.raises(RowError) as caught:
        parse_rows(row)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": GOOD["chosen"], "rejected_messages": GOOD["rejected"]},
        {"messages": GOOD["chosen"], "rejected_response": [WORSE]},
        {"query": "What do horses eat?", "response": "Hay.", "rejected_response": "Who cares.", "history": []},
    ],
)
def test_ways_to_write_ms_swift_s_rows(row):
    (read,) = parse_rows(row)
    assert (read.shape, read.chosen, read.rejected, read.unused) == ("swift", *GOOD.values(), ())


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"messages": [QUESTION], "rejected_response": "x"},
            "'messages' is not a list of messages that ends with the bet",
        ),
        (
            {"messages": [QUESTION, QUESTION], "rejected_response": "x"},
            "'messages' is not a list of messages that ends",
        ),
        ({"messages": "x", "rejected_response": "x"}, "'messages' is not a list of messages that ends"),
        ({"messages": GOOD["chosen"], "rejected_response": "Hay."}, "'chosen' and 'rejected' are the same"),
        (
            {"messages": GOOD["chosen"], "rejected_response": "x", "rejected_messages": [TURN]},
            "both 'rejected_response'",
        ),
        ({"query": "q", "response": "x", "rejected_messages": [TURN]}, "'rejected_messages' needs 'messages'"),
        ({"query": ["q"], "response": "x", "rejected_response": "y"}, "'query' is not a text: ['q']"),
    ],
)
def test_damaged_row_of_ms_swift(row, reason):
    with pytest.raises(RowError) as caught:
        parse_rows(row)
    assert str(caught.value).startswith(f"read as ms-swift's: {reason}")


def test_two_columns_with_the_better_answer_are_refused():
    row = {"messages": GOOD["chosen"], "rejected_response": "x", "chosen_response": "y"}
    message = "^--data_format swift: both 'messages' or 'response' and another column have the better answer"
    with pytest.raises(RowError, match=message):
        parse_rows(row, ShapeOptions(data_format="swift"))

"""Messages as templates take them: null keys, arguments of tool calls, the role developer."""

from __future__ import annotations

import copy

import pytest

from minimind.data.messages import (
    differing_keys,
    has_developer,
    listed,
    parse_json_text,
    parsed_list,
    read_messages,
    shown,
)
from minimind.data.sources import RowError

USER = {"role": "user", "content": "Weather?"}


def call(arguments: object, **further: object) -> dict:
    """An assistant turn with one tool call in OpenAI's form."""
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": function, **further}]}


def arguments_of(message: dict) -> object:
    return message["tool_calls"][0]["function"]["arguments"]


def test_plain_messages_are_the_same_objects():
    messages = [USER, {"role": "assistant", "content": "Rain."}]
    assert all(one is other for one, other in zip(read_messages("chosen", messages), messages, strict=True))


def test_unknown_keys_pass_and_null_keys_go():
    given = {"role": "assistant", "content": "Rain.", "reasoning_content": "...", "weight": 0, "name": None}
    (read,) = read_messages("chosen", [given])
    assert read == {"role": "assistant", "content": "Rain.", "reasoning_content": "...", "weight": 0}
    assert given["name"] is None


def test_null_content_of_a_turn_that_calls_tools_stays():
    given = {**call({}), "content": None}
    assert read_messages("chosen", [given]) == [given]


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ('{"city": "X", "days": [1, 2]}', {"city": "X", "days": [1, 2]}),
        ({"city": "X"}, {"city": "X"}),
        ("{}", {}),
        ("", {}),
        (" \n", {}),
        (None, None),
    ],
)
def test_arguments_given_as_a_text_become_an_object(given, read):
    message = call(given)
    before = copy.deepcopy(message)
    assert arguments_of(read_messages("chosen", [message])[0]) == read
    assert message == before


def test_arguments_without_a_function_object_are_parsed_too():
    message = {"role": "assistant", "tool_calls": [{"name": "weather", "arguments": '{"city": "X"}'}]}
    assert read_messages("chosen", [message])[0]["tool_calls"] == [{"name": "weather", "arguments": {"city": "X"}}]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1]", "the text in 'arguments' is not a JSON object"),
        ('"X"', "the text in 'arguments' is not a JSON object"),
        ("city=X", r"'arguments' is a text that is not valid JSON \(invalid JSON: Expecting value at column 1\)"),
        ('{"a": "\\ud800"}', r"'arguments' is a text that is not valid JSON \(invalid text: an escaped lone surrogate"),
    ],
)
def test_arguments_that_are_no_object_are_an_error(text, reason):
    with pytest.raises(RowError, match=f"^'chosen' message 1, tool call 0: {reason}"):
        read_messages("chosen", [USER, call(text)])


@pytest.mark.parametrize("calls", ["weather", {"name": "weather"}, [1], ["weather"], 3])
def test_tool_calls_are_a_list_of_objects(calls):
    with pytest.raises(RowError, match=r"^'rejected' message 0: 'tool_calls' is not a list of objects$"):
        read_messages("rejected", [{"role": "assistant", "content": "", "tool_calls": calls}])


def test_tool_calls_of_other_roles_are_not_read():
    message = {**USER, "tool_calls": "weather"}
    assert read_messages("chosen", [message]) == [message]


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "Will it "}, {"type": "text", "text": "rain?", "image_url": None}]
    message = {"role": "user", "content": parts}
    assert read_messages("chosen", [message]) == [{"role": "user", "content": "Will it rain?"}]
    assert message["content"] is parts


def test_text_parts_of_openai_responses_are_joined():
    parts = [{"type": "input_text", "text": "Will it "}, {"type": "output_text", "text": "rain?"}]
    assert read_messages("chosen", [{"role": "user", "content": parts}]) == [
        {"role": "user", "content": "Will it rain?"}
    ]


def test_a_list_that_is_a_text_is_parsed():
    assert parsed_list("'x'", ' ["a", 1]') == ["a", 1]
    for value in (["a"], "a", "[a]", '{"a": 1}', None):
        assert parsed_list("'x'", value) == value
    with pytest.raises(RowError, match=r"^'x' is a text that is not valid JSON .*; it is written as Python writes it"):
        parsed_list("'x'", "['a']")


def test_developer_is_read_as_system():
    messages = [{"role": "developer", "content": "Be brief."}, USER]
    assert read_messages("prompt", messages) == [{"role": "system", "content": "Be brief."}, USER]
    assert has_developer(messages)
    assert not has_developer([USER])
    assert not has_developer("developer")


def test_developer_beside_system_is_an_error():
    messages = [{"role": "system", "content": "Be kind."}, {"role": "developer", "content": "Be brief."}, USER]
    with pytest.raises(RowError, match=r"^'prompt' has both a system and a developer message; keep one of them$"):
        read_messages("prompt", messages)


def test_keys_that_differ():
    one = {"role": "user", "content": "a", "id": 1, "name": None}
    assert differing_keys(one, {"content": "b", "role": "user", "weight": 0}) == ["content", "id", "weight"]
    assert differing_keys(one, one) == []


def test_names_are_listed_shortly():
    assert listed(["score", "id"]) == "'score', 'id'"
    assert listed(map(str, range(9))) == "'0', '1', '2', '3', '4', '5' and 3 more"
    assert listed(["k" * 48, "k" * 49]) == f"'{'k' * 48}', '{'k' * 48}...'"


def test_values_are_shown_shortly():
    assert shown({"a": [1, 2]}) == "{'a': [1, 2]}"
    wide = [{str(number): [[10**40] * 6] * 6 for number in range(6)}] * 6
    assert len(shown(wide)) == 123
    assert shown(wide).endswith("...")


def test_json_text():
    assert parse_json_text("'tools'", '[{"name": "天气"}]') == [{"name": "天气"}]
    with pytest.raises(RowError, match=r"^'tools' is a text that is not valid JSON \(invalid JSON: "):
        parse_json_text("'tools'", "[{")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "system", "content": "x", "tools": "[{}]"}, "has 'tools'; move it to the row's own column 'tools'"),
        ({"role": "user", "content": "x", "functions": [{}]}, "has 'functions'; move it to the row's own column"),
        ({"role": "assistant", "content": "", "function_call": {"name": "f"}}, "has 'function_call', which chat"),
        ({"role": "assistant", "content": 5, "tool_calls": [{"name": "f"}]}, "has no text in 'content'"),
        ({"role": "assistant", "content": [{"text": "x"}], "tool_calls": [{"name": "f"}]}, "has no text in 'content'"),
        ({"role": "user", "content": []}, "has no text in 'content'"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "has a part of the type 'image_url'; only",
        ),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, "has a part of the type 'text' without a text"),
        (
            {"role": "user", "content": [{"type": "text", "text": "x", "image": "y"}]},
            "has a text part with 'image'; only",
        ),
        (
            {"role": "user", "content": [{"type": ["text"], "text": "x"}]},
            r"has a part of the type \['text'\]; only text",
        ),
    ],
)
def test_parts_of_a_message_that_would_be_lost_are_refused(message, reason):
    with pytest.raises(RowError, match=f"'chosen' message 0 {reason}"):
        read_messages("chosen", [message])

"""Checks of preference rows: accepted rows, and the message for each kind of invalid row."""

from __future__ import annotations

import pytest

from minimind.data.columns import Columns, read_columns
from minimind.data.rows import checked_row
from minimind.data.sources import RowError
from tests.conftest import conversation, pair

GOOD = pair("What is two and two?", "Four.", "Five.")
USER, ANSWER = conversation("What is two and two?", "Four.")


def with_chosen(messages: object) -> dict[str, object]:
    return {**GOOD, "chosen": messages}


BAD = {
    "half is a text": (with_chosen("Four."), "'chosen' is not a list of messages"),
    "half is an object": (with_chosen({"role": "user"}), "'chosen' is not a list of messages"),
    "half is empty": (with_chosen([]), "'chosen' is not a list of messages"),
    "message is a text": (with_chosen([USER, "Four."]), "'chosen' message 1 is not an object with 'role'"),
    "message without role": (
        with_chosen([USER, {"content": "Four."}]),
        "'chosen' message 1 is not an object",
    ),
    "unknown role": (
        with_chosen([{"role": "human", "content": "?"}, ANSWER]),
        "'chosen' message 0 has the unknown role 'human'; use one of system, user, assistant, tool",
    ),
    "role of another type": (with_chosen([USER, {"role": ["user"], "content": "?"}]), r"unknown role \['user'\]"),
    "no content": (with_chosen([USER, {"role": "assistant"}]), "'chosen' message 1 has no text in 'content'"),
    "content is null": (with_chosen([USER, {"role": "assistant", "content": None}]), "message 1 has no text"),
    "content is a list": (with_chosen([{"role": "user", "content": ["?"]}, ANSWER]), "message 0 has no text"),
    "a user who calls tools": (
        with_chosen([{"role": "user", "tool_calls": [{"name": "f"}]}, ANSWER]),
        "'chosen' message 0 has no text in 'content'",
    ),
    "an empty list of tool calls": (
        with_chosen([USER, {"role": "assistant", "tool_calls": []}]),
        "'chosen' message 1 has no text in 'content'",
    ),
    "no assistant": (with_chosen([USER]), "'chosen' has no assistant turn"),
    "different questions": (
        {"chosen": conversation("A?", "Yes."), "rejected": conversation("B?", "No.")},
        r"the prompts differ: message 0 of 'chosen' \(user\) and message 0 of 'rejected' \(user\) are not equal",
    ),
    "different roles": (
        {"chosen": [USER, ANSWER], "rejected": [{**USER, "role": "system"}, ANSWER]},
        r"message 0 of 'chosen' \(user\) and message 0 of 'rejected' \(system\)",
    ),
    "questions differ after a shared turn": (
        {"chosen": conversation("A", "B", "C", "D"), "rejected": conversation("A", "B", "X", "Y")},
        r"message 2 of .* \(user\) are not equal, and no assistant turn before them differs",
    ),
    "the same twice": ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "are the same"),
}


@pytest.mark.parametrize("name", BAD)
def test_invalid_row_is_an_error_with_the_reason(name):
    row, message = BAD[name]
    with pytest.raises(RowError, match=message):
        checked_row(**row)


@pytest.mark.parametrize("half", ["chosen", "rejected"])
def test_message_names_the_half(half):
    with pytest.raises(RowError, match=f"'{half}' has no assistant turn"):
        checked_row(**{**GOOD, half: [USER]})


TOOL_CALL = {"role": "assistant", "tool_calls": [{"name": "add", "arguments": {"a": 2, "b": 2}}]}

ACCEPTED = {
    "one turn": GOOD,
    "several turns": {
        "chosen": conversation("A", "B", "C", "D"),
        "rejected": conversation("A", "B", "C", "E"),
    },
    "turns after the answers differ": {
        "chosen": conversation("A", "B", "C", "D"),
        "rejected": conversation("A", "X", "Y", "Z"),
    },
    "one conversation continues the other": {
        "chosen": conversation("A", "B"),
        "rejected": conversation("A", "B", "C", "D"),
    },
    "system prompt": {
        half: [{"role": "system", "content": "Be kind."}, *GOOD[half]] for half in ("chosen", "rejected")
    },
    "tool calls without text": {
        "chosen": [USER, TOOL_CALL, {"role": "tool", "content": "4"}, ANSWER],
        "rejected": [USER, {**TOOL_CALL, "content": None}, {"role": "tool", "content": "4"}, ANSWER],
    },
    "an empty answer": pair("A?", "", "No."),
    "Chinese and emoji": pair("你好吗?", "很好,谢谢 😀", "不好"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_valid_row_keeps_its_messages(name):
    row = checked_row(**ACCEPTED[name])
    assert row.chosen == ACCEPTED[name]["chosen"]
    assert row.rejected == ACCEPTED[name]["rejected"]


def test_columns_complete_both_halves_and_come_along():
    tool = {"type": "function", "function": {"name": "add"}}
    columns = read_columns(
        {"prompt": [USER], "system": "Be kind.", "tools": [tool], "chat_template_kwargs": {"plain": True}, "id": 7},
        own=(),
    )
    row = checked_row(chosen=[ANSWER], rejected=[{"role": "assistant", "content": "Five."}], columns=columns)
    system = {"role": "system", "content": "Be kind."}
    assert row.chosen == [system, USER, ANSWER]
    assert row.rejected == [system, USER, {"role": "assistant", "content": "Five."}]
    assert (row.tools, row.template_kwargs, row.unused) == ([tool], {"plain": True}, ("id",))


def test_an_answer_in_the_prompt_is_no_answer_of_a_half():
    columns = read_columns({"prompt": conversation("A?", "B", "C?")}, own=())
    with pytest.raises(RowError, match="'rejected' has no assistant turn"):
        checked_row(chosen=[ANSWER], rejected=[{"role": "tool", "content": "4"}], columns=columns)


def test_messages_are_counted_without_a_prompt_that_is_put_in_front():
    columns = read_columns({"prompt": conversation("A?", "B", "C?")}, own=())
    tools = ({"role": "tool", "content": text} for text in ("4", "5"))
    chosen, rejected = ([ANSWER, tool, ANSWER] for tool in tools)
    with pytest.raises(RowError, match=r"message 1 of 'chosen' \(tool\) and message 1 of 'rejected' \(tool\) are"):
        checked_row(chosen=chosen, rejected=rejected, columns=columns)


@pytest.mark.parametrize("halves", [("chosen",), ("rejected",), ("chosen", "rejected")])
def test_a_developer_message_is_a_system_message_and_is_noted(halves):
    roles = {half: "developer" if half in halves else "system" for half in ("chosen", "rejected")}
    row = checked_row(**{half: [{"role": role, "content": "Be kind."}, *GOOD[half]] for half, role in roles.items()})
    assert row.chosen[0] == row.rejected[0] == {"role": "system", "content": "Be kind."}
    assert row.has_developer
    assert not checked_row(**GOOD).has_developer


def test_other_keys_of_a_prompt_are_compared_when_they_are_rendered():
    row = checked_row(chosen=[{**USER, "id": 1}, ANSWER], rejected=[{**USER, "id": 2}, {**ANSWER, "content": "Five."}])
    assert [half[0]["id"] for half in (row.chosen, row.rejected)] == [1, 2]


def test_results_of_different_calls_may_differ():
    calls = [{**TOOL_CALL, "content": "", "tool_calls": [{"name": name}]} for name in ("add", "subtract")]
    results = [{"role": "tool", "content": content} for content in ("4", "0")]
    chosen, rejected = ([USER, *turns, ANSWER] for turns in zip(calls, results, strict=True))
    assert checked_row(chosen=chosen, rejected=rejected).chosen == chosen


def test_null_is_no_difference_between_prompts():
    one = {"role": "user", "content": "?", "name": None, "tool_calls": None}
    row = checked_row(chosen=[one, ANSWER], rejected=[{"role": "user", "content": "?"}, {**ANSWER, "content": "No."}])
    assert row.chosen[0] == {"role": "user", "content": "?"}


def test_a_row_without_a_user_turn_beside_columns_that_nothing_reads_is_refused():
    answer = {half: [{"role": "assistant", "content": half}] for half in ("chosen", "rejected")}
    with pytest.raises(
        RowError, match=r"'chosen' has no user turn, and nothing reads the columns 'instruction'; if one"
    ):
        checked_row(**answer, columns=Columns(unused=("instruction",)))
    assert checked_row(**answer, columns=Columns()).chosen == answer["chosen"]

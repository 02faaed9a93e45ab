"""Columns beside the halves: what they add to a conversation, and when they contradict it."""

from __future__ import annotations

import decimal

import pytest

from minimind.data.columns import Columns, number_of, read_columns
from minimind.data.sources import RowError
from tests.conftest import conversation

SYSTEM, OTHER_SYSTEM = ({"role": "system", "content": text} for text in ("Be kind.", "Be brief."))
QUESTION, ANSWER = conversation("What do horses eat?", "Hay.")
EARLIER = conversation("Hello", "Hi!")
CALL = {"role": "assistant", "tool_calls": [{"name": "look_up"}]}
RESULT = {"role": "tool", "content": "hay"}


def read(row: dict) -> Columns:
    return read_columns(row, own=("chosen", "rejected"))


# name -> columns, messages of the half, the whole conversation
COMPLETED = {
    "no columns": ({}, [SYSTEM, QUESTION, ANSWER], [SYSTEM, QUESTION, ANSWER]),
    "messages before an answer": ({"prompt": [QUESTION]}, [ANSWER], [QUESTION, ANSWER]),
    "a system message in the prompt": ({"prompt": [SYSTEM, QUESTION]}, [ANSWER], [SYSTEM, QUESTION, ANSWER]),
    "several turns before an answer": (
        {"prompt": [SYSTEM, *EARLIER, QUESTION]},
        [ANSWER],
        [SYSTEM, *EARLIER, QUESTION, ANSWER],
    ),
    "an answer that calls a tool": (
        {"prompt": [QUESTION]},
        [CALL, RESULT, ANSWER],
        [QUESTION, CALL, RESULT, ANSWER],
    ),
    "an answer with later turns": (
        {"prompt": [QUESTION]},
        [ANSWER, *conversation("And cows?", "Grass.")],
        [QUESTION, ANSWER, *conversation("And cows?", "Grass.")],
    ),
    "the half has the prompt": ({"prompt": [QUESTION]}, [QUESTION, ANSWER], [QUESTION, ANSWER]),
    "the half has all of the prompt": (
        {"prompt": [SYSTEM, *EARLIER, QUESTION]},
        [SYSTEM, *EARLIER, QUESTION, ANSWER],
        [SYSTEM, *EARLIER, QUESTION, ANSWER],
    ),
    "only the prompt has the system message": (
        {"prompt": [SYSTEM, QUESTION]},
        [QUESTION, ANSWER],
        [SYSTEM, QUESTION, ANSWER],
    ),
    "only the half has the system message": (
        {"prompt": [QUESTION]},
        [SYSTEM, QUESTION, ANSWER],
        [SYSTEM, QUESTION, ANSWER],
    ),
    "the half has the system message, not the prompt": (
        {"prompt": [QUESTION]},
        [SYSTEM, ANSWER],
        [SYSTEM, QUESTION, ANSWER],
    ),
    "a text before an answer": ({"prompt": "What do horses eat?"}, [ANSWER], [QUESTION, ANSWER]),
    "a text behind the system message": (
        {"prompt": "What do horses eat?", "system": "Be kind."},
        [ANSWER],
        [SYSTEM, QUESTION, ANSWER],
    ),
    "a text that the half has": ({"prompt": "What do horses eat?"}, [QUESTION, ANSWER], [QUESTION, ANSWER]),
    "the text of the first turn": ({"prompt": "Hello"}, [*EARLIER, QUESTION, ANSWER], [*EARLIER, QUESTION, ANSWER]),
    "the text of the last turn, with white space": (
        {"prompt": " What do horses eat?\n"},
        [*EARLIER, QUESTION, ANSWER],
        [*EARLIER, QUESTION, ANSWER],
    ),
    "system column": ({"system": "Be kind."}, [QUESTION, ANSWER], [SYSTEM, QUESTION, ANSWER]),
    "system column that the half repeats": (
        {"system": "Be kind."},
        [SYSTEM, QUESTION, ANSWER],
        [SYSTEM, QUESTION, ANSWER],
    ),
    "a system message with further keys stays whole": (
        {"system": "Be kind."},
        [{**SYSTEM, "tools": "[]"}, QUESTION, ANSWER],
        [{**SYSTEM, "tools": "[]"}, QUESTION, ANSWER],
    ),
    "empty values": ({"prompt": "", "system": "", "tools": []}, [QUESTION, ANSWER], [QUESTION, ANSWER]),
    "null values": ({"prompt": None, "system": None}, [QUESTION, ANSWER], [QUESTION, ANSWER]),
    "an empty list of messages": ({"prompt": []}, [QUESTION, ANSWER], [QUESTION, ANSWER]),
}


@pytest.mark.parametrize("name", COMPLETED)
def test_conversation_of_columns_and_half(name):
    row, half, whole = COMPLETED[name]
    assert read(row).complete("chosen", half) == whole


# name -> columns, messages of the half, reason
CONTRADICTIONS = {
    "another question": (
        {"prompt": [QUESTION]},
        conversation("What do cows eat?", "Grass."),
        "'chosen' does not begin with 'prompt': its message 0 and message 0 of 'prompt' differ in 'content'",
    ),
    "another question behind system messages": (
        {"prompt": [SYSTEM, QUESTION]},
        [SYSTEM, *conversation("What do cows eat?", "Grass.")],
        "'chosen' does not begin with 'prompt': its message 1 and message 1 of 'prompt' differ in 'content'",
    ),
    "system message in the half only": (
        {"prompt": [*EARLIER, QUESTION]},
        [SYSTEM, EARLIER[0], ANSWER],
        "'chosen' does not begin with 'prompt': its message 2 and message 1 of 'prompt' differ in 'content'",
    ),
    "another key": (
        {"prompt": [{**QUESTION, "name": "Ann"}]},
        [QUESTION, ANSWER],
        "'chosen' does not begin with 'prompt': its message 0 and message 0 of 'prompt' differ in 'name'",
    ),
    "another role": (
        {"prompt": [*EARLIER, QUESTION]},
        [EARLIER[0], RESULT, QUESTION, ANSWER],
        "'chosen' does not begin with 'prompt': its message 1 has the role tool, message 1 of 'prompt' the role "
        "assistant",
    ),
    "a half that ends early": (
        {"prompt": [*EARLIER, QUESTION]},
        EARLIER,
        "'chosen' does not begin with 'prompt': it ends before message 2 of 'prompt'",
    ),
    "an answer that repeats the question": (
        {"prompt": [QUESTION]},
        [{"role": "assistant", "content": "Hi!"}, QUESTION, ANSWER],
        "'chosen' contains the user turn 'What do horses eat?' of 'prompt', but does not begin with 'prompt'",
    ),
    "a prompt that ends with an answer": (
        {"prompt": [QUESTION, ANSWER]},
        [{"role": "assistant", "content": "Who cares."}],
        "'prompt' ends with an assistant turn, and 'chosen' begins with one",
    ),
    "another text": (
        {"prompt": "What do cows eat?"},
        [QUESTION, ANSWER],
        "'prompt' is no user turn of 'chosen': 'What do cows eat?'; correct it, or rename the column if it is no part "
        "of the conversation",
    ),
    "the text of an answer": ({"prompt": "Hay."}, [QUESTION, ANSWER], "'prompt' is no user turn of 'chosen': 'Hay.'"),
    "system column and half": (
        {"system": "Be brief."},
        [SYSTEM, QUESTION, ANSWER],
        "the system messages of the column 'system' and of 'chosen' differ",
    ),
    "system messages of prompt and half": (
        {"prompt": [OTHER_SYSTEM, QUESTION]},
        [SYSTEM, QUESTION, ANSWER],
        "the system messages of 'prompt' and of 'chosen' differ",
    ),
    "system column and prompt": (
        {"system": "Be kind.", "prompt": [OTHER_SYSTEM, QUESTION]},
        [ANSWER],
        "the system messages of the column 'system' and of 'prompt' differ",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradiction_is_an_error(name):
    row, half, reason = CONTRADICTIONS[name]
    with pytest.raises(RowError) as caught:
        read(row).complete("chosen", half)
    assert str(caught.value).startswith(reason)


TOOL = {"type": "function", "function": {"name": "look_up"}}
TEXT = '{"type": "function", "function": {"name": "look_up"}}'


@pytest.mark.parametrize(
    ("value", "tools"),
    [
        ([TOOL], [TOOL]),
        (f"[{TEXT}]", [TOOL]),
        ([TEXT, TOOL], [TOOL, TOOL]),
        ("[]", None),
        (" ", None),
        ([], None),
        (None, None),
        ("null", None),
    ],
)
def test_tools(value, tools):
    columns = read({"tools": value})
    assert columns.tools == tools
    assert columns.unused == ()


def test_template_kwargs():
    assert read({"chat_template_kwargs": {"enable_thinking": False}}).template_kwargs == {"enable_thinking": False}
    assert read({"chat_template_kwargs": '{"documents": []}'}).template_kwargs == {"documents": []}
    for empty in (None, {}, "", "{}"):
        assert read({"chat_template_kwargs": empty}).template_kwargs == {}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": 3}, "'prompt' is neither a list of messages nor a text: 3"),
        ({"prompt": {"role": "user"}}, "'prompt' is neither a list of messages nor a text: {'role': 'user'}"),
        ({"prompt": ["Hello"]}, "'prompt' message 0 is not an object with 'role' and 'content'"),
        ({"prompt": [{"role": "human", "content": "?"}]}, "'prompt' message 0 has the unknown role 'human'"),
        ({"system": [SYSTEM]}, "'system' is not a text: [{'content': 'Be kind.', 'role': 'system'}]"),
        ({"tools": {"name": "look_up"}}, "'tools' is not a list of objects: {'name': 'look_up'}"),
        ({"tools": TEXT}, "'tools' is not a list of objects"),
        ({"tools": False}, "'tools' is not a list of objects: False"),
        ({"tools": [3]}, "an entry of 'tools' is not an object: 3"),
        ({"tools": ["look_up"]}, "an entry of 'tools' is a text that is not valid JSON (invalid JSON: Expecting value"),
        ({"tools": "look_up"}, "'tools' is a text that is not valid JSON (invalid JSON: Expecting value"),
        ({"chat_template_kwargs": [1]}, "'chat_template_kwargs' is not an object: [1]"),
        ({"chat_template_kwargs": 0}, "'chat_template_kwargs' is not an object: 0"),
        ({"chat_template_kwargs": "x"}, "'chat_template_kwargs' is a text that is not valid JSON"),
        (
            {"chat_template_kwargs": {"enable_thinking": True, "tokenize": True}},
            "'chat_template_kwargs' has the key 'tokenize', which is no variable of a chat template",
        ),
        (
            {"chat_template_kwargs": {"messages": []}},
            "'chat_template_kwargs' has the key 'messages', which is no variable of a chat template",
        ),
    ],
)
def test_value_of_a_wrong_type_is_an_error(row, reason):
    with pytest.raises(RowError) as caught:
        read(row)
    assert str(caught.value).startswith(reason)


def test_columns_of_no_use_are_named_if_they_have_a_value():
    row = {"id": 0, "chosen": [], "note": None, "score": 3.5, "rejected": [], "messages": [], "system": "Be kind."}
    assert read(row).unused == ("id", "score", "messages")


def test_pictures_and_sounds_are_refused():
    for name in ("images", "videos", "audios"):
        with pytest.raises(RowError, match=f"^the row has '{name}'; only text is trained on$"):
            read({name: ["x"]})
        assert read({name: []}).unused == (name,)


def test_the_prompt_may_have_another_name():
    columns = read_columns({"question": [QUESTION], "prompt": "unused"}, own=(), place="question")
    assert (columns.prompt, columns.unused) == ([QUESTION], ("prompt",))
    with pytest.raises(
        RowError, match="'chosen' does not begin with 'question': its message 0 and message 0 of 'question'"
    ):
        columns.complete("chosen", conversation("What do cows eat?", "Grass."))


def test_developer_in_the_prompt_is_noted():
    assert read({"prompt": [{"role": "developer", "content": "Be kind."}, QUESTION]}).has_developer
    assert not read({"prompt": [SYSTEM, QUESTION]}).has_developer


def test_null_variables_of_the_template_are_not_given():
    row = {"chat_template_kwargs": {"thinking": None, "date": "today"}}
    assert read_columns(row, ()).template_kwargs == {"date": "today"}


def test_a_prompt_that_is_the_json_text_of_messages_is_read_as_messages():
    text = '[{"role": "user", "content": "q"}]'
    assert read_columns({"prompt": text}, ()).prompt == [{"role": "user", "content": "q"}]
    assert read_columns({"prompt": "[1, 2] is a list"}, ()).prompt == "[1, 2] is a list"
    assert read_columns({"prompt": "[1, 2]"}, ()).prompt == "[1, 2]"


def test_a_text_prompt_goes_before_a_half_that_begins_with_an_answer():
    turns = conversation("x", "a", "more", "b")[1:]
    assert Columns(prompt="q").complete("chosen", turns) == [{"role": "user", "content": "q"}, *turns]
    with pytest.raises(RowError, match="'prompt' is no user turn of 'chosen'"):
        Columns(prompt="more").complete("chosen", turns)  # said later: where the prompt belongs is not known


def test_numbers_of_any_file():
    assert [number_of(value) for value in (2, 0.5, "0.5", decimal.Decimal("0.25"))] == [2, 0.5, 0.5, 0.25]
    assert [number_of(value) for value in (True, "x", float("nan"), decimal.Decimal("NaN"), [1])] == [None] * 5

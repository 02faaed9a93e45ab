"""Turns of ShareGPT as messages: names of roles, tool calls, and what is no turn."""

from __future__ import annotations

import pytest

from minimind.data.messages import read_messages
from minimind.data.shapes.turns import FUNCTION_CALL, ROLES, TurnNames, is_turns, messages_of_turns
from minimind.data.sources import RowError

NAMES = TurnNames()


def turn(name: object, value: object, **more: object) -> dict:
    return {"from": name, "value": value, **more}


def read(*turns: object) -> list:
    return messages_of_turns("conversations", list(turns), NAMES)


@pytest.mark.parametrize("name", [name for name in ROLES if name != FUNCTION_CALL])
def test_names_of_roles(name):
    assert read(turn(name, "x", weight=0)) == [{"weight": 0, "role": ROLES[name], "content": "x"}]
    assert read({"role": name, "content": "x"}) == [{"role": ROLES[name], "content": "x"}]
    assert set(ROLES.values()) == {"user", "assistant", "tool", "system", "developer", FUNCTION_CALL}


CALL = {"name": "weather", "arguments": {"city": "X"}}
TEXT = '{"name": "weather", "arguments": {"city": "X"}}'


@pytest.mark.parametrize(("value", "calls"), [(TEXT, [CALL]), (f"[{TEXT}, {TEXT}]", [CALL, CALL]), (CALL, [CALL])])
def test_function_calls(value, calls):
    (message,) = read(turn(FUNCTION_CALL, value))
    functions = [{"type": "function", "function": call} for call in calls]
    assert message == {"role": "assistant", "content": "", "tool_calls": functions}
    assert read_messages("chosen", [message]) == [message]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            turn("alien", "x"),
            "'conversations' turn 0 has the unknown role 'alien'; use one of user, human, assistant, gpt",
        ),
        (turn(["gpt"], "x"), "'conversations' turn 0 has the unknown role ['gpt']"),
        ({"from": "gpt"}, "'conversations' turn 0 has no 'value'"),
        ({"from": "gpt", "content": "x"}, "'conversations' turn 0 has no 'value'"),
        ({"from": "gpt", "role": "user", "value": "x"}, "'conversations' turn 0 has both 'from' and 'role'"),
        (
            turn(FUNCTION_CALL, "weather(X)"),
            "'conversations' turn 0: the function call is a text that is not valid JSON",
        ),
        (
            turn(FUNCTION_CALL, '{"name": "weather"}'),
            "'conversations' turn 0: the function call has no 'name' and 'arg",
        ),
        (turn(FUNCTION_CALL, "[]"), "'conversations' turn 0: the list of function calls is empty"),
        (turn(FUNCTION_CALL, None), "'conversations' turn 0: the function call has no 'name' and 'arguments': None"),
    ],
)
def test_turn_that_cannot_be_read(given, reason):
    with pytest.raises(RowError) as caught:
        read(given)
    assert str(caught.value).startswith(reason)


def test_what_is_no_turn_is_left_to_the_checks_of_messages():
    for value in ([3, "x", {"content": "y"}], "x", None, {"from": "gpt"}):
        assert messages_of_turns("chosen", value, NAMES) == value


def test_turns_are_recognised():
    assert is_turns(turn("gpt", "x"), NAMES)
    assert is_turns([turn("gpt", "x")], NAMES)
    assert not is_turns([{"role": "user"}, "from", 3], NAMES)
    assert not is_turns("from", NAMES)


def test_other_names():
    names = TurnNames(role="speaker", content="text", roles={"q": "user", "a": "assistant"})
    assert messages_of_turns("x", [{"speaker": "q", "text": "y"}], names) == [{"role": "user", "content": "y"}]
    with pytest.raises(RowError, match=r"unknown role 'human'; use one of q, a$"):
        messages_of_turns("x", [{"speaker": "human", "text": "y"}], names)

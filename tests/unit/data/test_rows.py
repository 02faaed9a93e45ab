"""Preference rows: what is accepted, and for each way to be wrong the words that a user reads."""

from __future__ import annotations

import json

import pytest

from minimind.data.rows import RowError, parse_row, read_lines
from minimind.errors import DataError
from tests.conftest import conversation, pair

GOOD = pair("What is two and two?", "Four.", "Five.")


def line(row: object) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


def with_chosen(messages: object) -> bytes:
    return line({**GOOD, "chosen": messages})


USER, ANSWER = conversation("What is two and two?", "Four.")

BAD = {
    "cut off": (b'{"chosen": [', r"broken JSON: Expecting value at column \d+"),
    "no quotes": (
        b"{chosen: 1}",
        "broken JSON: Expecting property name enclosed in double quotes at column 2",
    ),
    "two objects": (line(GOOD) + line(GOOD), r"broken JSON: Extra data at column \d+"),
    "nested without end": (b'{"chosen": ' + b"[" * 200_000, "broken JSON"),
    "a number of 5000 digits": (b'{"chosen": ' + b"1" * 5000 + b"}", "broken JSON"),
    "latin-1": ('{"chosen": "é"}'.encode("latin-1"), r"not UTF-8 \(byte 12\)"),
    "UTF-16": ("{}".encode("utf-16"), r"not UTF-8 \(byte 0\)"),
    "a list": (b"[1, 2]", "a JSON list, not an object with 'chosen' and 'rejected'"),
    "a string": (b'"chosen"', "a JSON str, not an object"),
    "null": (b"null", "a JSON NoneType, not an object"),
    "no chosen": (line({"rejected": GOOD["rejected"]}), "no 'chosen'"),
    "no rejected": (line({"chosen": GOOD["chosen"]}), "no 'rejected'"),
    "half is a text": (with_chosen("Four."), "'chosen' is not a list of messages"),
    "half is empty": (with_chosen([]), "'chosen' is not a list of messages"),
    "message is a text": (with_chosen([USER, "Four."]), "'chosen' message 1 is not an object with 'role'"),
    "message without role": (
        with_chosen([USER, {"content": "Four."}]),
        "'chosen' message 1 is not an object",
    ),
    "unknown role": (
        with_chosen([{"role": "human", "content": "?"}, ANSWER]),
        "'chosen' message 0 has role 'human'; known are system, user, assistant, tool",
    ),
    "role of another type": (with_chosen([USER, {"role": ["user"], "content": "?"}]), r"has role \['user'\]"),
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
        line({"chosen": conversation("A?", "Yes."), "rejected": conversation("B?", "No.")}),
        r"different prompts: 'chosen' and 'rejected' part at message 0 \(user / user\)",
    ),
    "different roles": (
        line({"chosen": [USER, ANSWER], "rejected": [{**USER, "role": "system"}, ANSWER]}),
        r"part at message 0 \(user / system\)",
    ),
    "questions differ after a shared turn": (
        line({"chosen": conversation("A", "B", "C", "D"), "rejected": conversation("A", "B", "X", "Y")}),
        r"part at message 2 \(user / user\), before any assistant turn differs",
    ),
    "the same twice": (line({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}), "are the same"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_says_what_is_wrong(name):
    raw, message = BAD[name]
    with pytest.raises(RowError, match=message):
        parse_row(raw)


@pytest.mark.parametrize("half", ["chosen", "rejected"])
def test_the_message_names_the_half(half):
    with pytest.raises(RowError, match=f"'{half}' has no assistant turn"):
        parse_row(line({**GOOD, half: [USER]}))


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
    "one goes on where the other ends": {
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
    "more keys than needed": {**GOOD, "source": "test", "score": 3},
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_good_row_comes_back_as_it_was_written(name):
    row = parse_row(line(ACCEPTED[name]))
    assert row.chosen == ACCEPTED[name]["chosen"]
    assert row.rejected == ACCEPTED[name]["rejected"]


def test_a_byte_order_mark_is_no_error():
    assert parse_row(b"\xef\xbb\xbf" + line(GOOD)).chosen == GOOD["chosen"]


def test_windows_line_ends_are_no_error():
    assert parse_row(line(GOOD) + b"\r\n").rejected == GOOD["rejected"]


def test_blank_lines_are_left_out_and_line_numbers_stay(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\n{}\n\n  \t\r\n{}")
    assert list(read_lines(path)) == [(2, b"{}\n"), (5, b"{}")]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf \n"])
def test_an_empty_file_says_so(tmp_path, content):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"pairs\.jsonl: is empty; a preference file has one JSON object a line"):
        list(read_lines(path))


@pytest.mark.parametrize("name", ["nothing.jsonl", "."])
def test_a_missing_file_says_so(tmp_path, name):
    with pytest.raises(DataError, match="no such preference file"):
        list(read_lines(tmp_path / name))

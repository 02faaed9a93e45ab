"""Lines of a preference file: numbers, blank lines, and the message for each way to be no JSON."""

from __future__ import annotations

import pytest

from minimind.data.sources import RowError, parse_json, read_lines
from minimind.errors import DataError


def test_blank_lines_are_skipped_and_counted(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\n{}\n\n  \t\r\n{}")
    assert list(read_lines(path)) == [(2, b"{}\n"), (5, b"{}")]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf \n"])
def test_empty_file_is_an_error(tmp_path, content):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"pairs\.jsonl: the file is empty; a preference file has one JSON object per"):
        list(read_lines(path))


@pytest.mark.parametrize("name", ["nothing.jsonl", "."])
def test_missing_file_is_an_error(tmp_path, name):
    with pytest.raises(DataError, match="no such preference file; --data_path needs a file"):
        list(read_lines(tmp_path / name))


def test_read_error_is_reported_with_the_file(tmp_path, monkeypatch):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"{}\n")

    def fail(self, mode):
        raise OSError("Input/output error")

    monkeypatch.setattr(type(path), "open", fail)
    with pytest.raises(DataError, match=r"pairs\.jsonl: cannot read the file \(Input/output error\)"):
        list(read_lines(path))


INVALID = {
    "cut off": (b'{"chosen": [', r"^invalid JSON: Expecting value at column 13$"),
    "no quotes": (
        b"{chosen: 1}",
        "^invalid JSON: Expecting property name enclosed in double quotes at column 2$",
    ),
    "two objects": (b"{}{}", r"^invalid JSON: Extra data at column 3$"),
    "a number of 5000 digits": (b'{"chosen": ' + b"1" * 5000 + b"}", "^invalid JSON: a number is too large"),
    "latin-1": ('{"chosen": "é"}'.encode("latin-1"), r"^not UTF-8 \(byte 12\)$"),
    "UTF-16": ("{}".encode("utf-16"), r"^not UTF-8 \(byte 0\)$"),
    "lone surrogate": (rb'{"chosen": "\ud800"}', "^invalid text: an escaped lone surrogate"),
    "lone surrogate, upper case": (rb'{"chosen": "\uDFFF"}', "^invalid text: an escaped lone surrogate"),
    "lone surrogate in a key": (rb'{"\udc80": 1}', "^invalid text: an escaped lone surrogate"),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_line_is_an_error_with_the_reason(name):
    line, message = INVALID[name]
    with pytest.raises(RowError, match=message):
        parse_json(line)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"\xef\xbb\xbf[1]", [1]),
        (b'{"a": null}\r\n', {"a": None}),
        ('{"a": "你好 😀"}'.encode(), {"a": "你好 😀"}),
        # Both halves of a surrogate pair are one character.
        (rb'"\ud83d\ude00"', "😀"),
    ],
)
def test_valid_line_is_decoded(line, value):
    assert parse_json(line) == value

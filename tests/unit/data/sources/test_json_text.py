"""JSON text: lines and elements with their numbers, bounds, and the message for each way to be no JSON."""

from __future__ import annotations

import io
import json

import pytest

from minimind.data.sources import json_text
from minimind.data.sources.json_text import CutOffError, RowError, parse_json, read_lines, read_values


def values(text: bytes, *, in_array: bool) -> list[tuple[int, bytes]]:
    found = read_values(io.BytesIO(text), in_array=in_array)
    return [(n, str(one).encode() if isinstance(one, RowError) else one.strip()) for n, one in found]


def test_blank_lines_are_skipped_and_counted():
    stream = io.BytesIO(b"\xef\xbb\xbf\n{}\n\n  \t\r\n{}")
    assert list(read_lines(stream)) == [(2, b"{}\n"), (5, b"{}")]


@pytest.mark.parametrize("ending", [b"\n", b""])
def test_long_line_is_passed_over(monkeypatch, ending):
    monkeypatch.setattr(json_text, "ROW_BYTES", 16)
    rows = list(read_lines(io.BytesIO(b"[1]\n" + b"x" * 100 + b"\n[2]\n" + b"y" * 15 + b"\n" + b"z" * 16 + ending)))
    assert [(number, isinstance(row, RowError)) for number, row in rows] == [
        (1, False),
        (2, True),
        (3, False),
        (4, False),
        (5, True),
    ]
    assert str(rows[1][1]).startswith("the row is longer than")


TRICKY = [
    {"a": '"}],{["\\', "b": [[], {}, [{"c": ['\\"', "x"]}]]},
    [],
    "]",
    -1.5e3,
    None,
    {"\\": "\u4f60\u597d \U0001f600", "": '\\"' * 9},
]


@pytest.mark.parametrize("chunk", [*range(1, 9), 100])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("in_array", [True, False])
def test_values_are_found_wherever_the_chunks_end(monkeypatch, chunk, indent, in_array):
    monkeypatch.setattr(json_text, "_CHUNK", chunk)
    rows = TRICKY if in_array else [one for one in TRICKY if isinstance(one, dict | list)]
    joined = ", " if in_array else "\n"
    text = joined.join(json.dumps(one, indent=indent, ensure_ascii=False) for one in rows).encode()
    found = values(b" [" + text + b"] \n" if in_array else text, in_array=in_array)
    assert [(number, json.loads(value)) for number, value in found] == list(enumerate(rows, start=1))


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_long_values_are_passed_over(monkeypatch, chunk):
    monkeypatch.setattr(json_text, "_CHUNK", chunk)
    monkeypatch.setattr(json_text, "ROW_BYTES", 16)
    long = b'"' + b"]," * 20 + b'"'
    found = values(b"[1," + long + b",2,{" + long + b":" + long + b"},[" + b"[" * 20 + b"]" * 20 + b"]]", in_array=True)
    assert [number for number, _ in found] == [1, 2, 3, 4, 5]
    assert [len(value) < 16 for _, value in found] == [True, False, True, False, False]


def test_value_that_is_no_json_does_not_hide_others():
    assert values(b"[{a}, [}, ,1,]", in_array=True) == [(1, b"{a}"), (2, b"[}"), (3, b""), (4, b"1"), (5, b"")]
    assert values(b"{}}{1}", in_array=False) == [(1, b"{}"), (2, b"}{1}")]


@pytest.mark.parametrize(("text", "number"), [(b"[", 1), (b"[1, 2", 2), (b'[1, "', 2), (b'[1, "]', 2), (b"[[1]", 1)])
def test_array_that_is_cut_is_an_error(text, number):
    with pytest.raises(CutOffError, match=f"the file ends within row {number}"):
        values(text, in_array=True)


def test_deep_nesting_is_an_error(monkeypatch):
    monkeypatch.setattr(json_text, "_DEPTH", 10)
    assert len(values(b"[" + b"[" * 9 + b"]" * 9 + b"]", in_array=True)) == 1
    with pytest.raises(CutOffError, match="row 2 is nested 10 brackets deep"):
        values(b"[1," + b"[" * 11 + b"]" * 11 + b"]", in_array=True)


def test_many_brackets_in_one_row_are_an_error(monkeypatch):
    """Commas within a value and the brackets of other rows do not count."""
    monkeypatch.setattr(json_text, "_BRACKETS", 10)
    row = b"[" + b"[1,2]," * 8 + b"{}]"  # ten brackets
    assert len(values(b"[" + (row + b",") * 3 + row + b"]", in_array=True)) == 4
    with pytest.raises(CutOffError, match="row 2 has more than 10 brackets"):
        values(b"[1,[" + row + b"]]", in_array=True)


def test_text_around_values_is_an_error():
    assert values(b"[]\n ", in_array=True) == []
    for text in (b"[1],", b"[{]}]"):
        with pytest.raises(CutOffError, match="more text behind the end of the array, which has 1 rows"):
            values(text, in_array=True)
    with pytest.raises(CutOffError, match="the file ends within row 2"):
        values(b"{} x", in_array=False)


INVALID = {
    "cut off": (b'{"chosen": [', r"^invalid JSON: Expecting value at column 13$"),
    "no quotes": (
        b"{chosen: 1}",
        "^invalid JSON: Expecting property name enclosed in double quotes at column 2$",
    ),
    "a comma": (b'{"a": 1}, ', r"^invalid JSON: Extra data at column 9: a comma, which belongs between the elements"),
    "two objects": (b"{}{}", r"^invalid JSON: Extra data at column 3$"),
    "a number of 5000 digits": (b'{"chosen": ' + b"1" * 5000 + b"}", "^invalid JSON: a number is too large"),
    "latin-1": ('{"chosen": "é"}'.encode("latin-1"), r"^not UTF-8 \(byte 12\); save the file as UTF-8$"),
    "UTF-16": ("{}".encode("utf-16"), r"^not UTF-8 \(byte 0\); save the file as UTF-8$"),
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


def test_lines_from_a_later_one_on_and_the_bytes_of_all(monkeypatch):
    monkeypatch.setattr(json_text, "ROW_BYTES", 16)
    sizes, text = [], b"\n{}\n" + b"x" * 40 + b"\n[]"
    found = [number for number, _ in read_lines(io.BytesIO(text), sizes.append, before=10)]
    assert (found, sum(sizes)) == ([12, 13, 14], len(text))

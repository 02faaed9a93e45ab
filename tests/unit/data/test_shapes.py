"""Row shapes: recognition, conversion and the message for a row of no known shape."""

from __future__ import annotations

import json

import pytest

from minimind.data import shapes
from minimind.data.rows import PreferenceRow, checked_row
from minimind.data.shapes import RowShape, parse_row
from minimind.data.sources import RowError
from tests.conftest import pair

GOOD = pair("What is two and two?", "Four.", "Five.")


def line(row: object) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


def test_conversations_are_taken_as_they_are():
    assert parse_row(line(GOOD)) == PreferenceRow(chosen=GOOD["chosen"], rejected=GOOD["rejected"])


def test_columns_of_no_use_are_named():
    row = parse_row(line({"id": None, **GOOD, "source": "test", "score": 3}))
    assert row == PreferenceRow(**GOOD, unused=("source", "score"))


def test_columns_of_the_conversation_are_used():
    columns = {"prompt": "What is two and two?", "system": "Be kind.", "tools": '[{"name": "add"}]'}
    row = parse_row(line({**GOOD, **columns, "chat_template_kwargs": {"plain": True}}))
    system = {"role": "system", "content": "Be kind."}
    assert (row.chosen, row.rejected) == ([system, *GOOD["chosen"]], [system, *GOOD["rejected"]])
    assert (row.tools, row.template_kwargs, row.unused) == ([{"name": "add"}], {"plain": True}, ())


def test_byte_order_mark_and_windows_line_end_are_ignored():
    assert parse_row(b"\xef\xbb\xbf" + line(GOOD) + b"\r\n").chosen == GOOD["chosen"]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ([1, 2], "a JSON array"),
        ("chosen", "a JSON string"),
        (None, "a JSON null"),
        (True, "a JSON boolean"),
        (0.5, "a JSON number"),
        ({"rejected": GOOD["rejected"]}, r"an object with the keys \['rejected'\]"),
        ({"chosen": GOOD["chosen"]}, r"an object with the keys \['chosen'\]"),
        ({}, r"an object with the keys \[\]"),
    ],
)
def test_unknown_shape_is_described(row, found):
    known = "a row must be an object with 'chosen' and 'rejected', each a list of messages"
    with pytest.raises(RowError, match=f"^unknown row shape: {found}; {known}$"):
        parse_row(line(row))


def test_description_of_many_long_keys_is_short():
    with pytest.raises(RowError) as caught:
        parse_row(line({f"{index}{'键' * 100}": 0 for index in range(100)}))
    assert "'0键键键" in str(caught.value)
    assert len(str(caught.value).encode()) < 500


@pytest.mark.parametrize("half", ["chosen", "rejected"])
def test_conversations_are_checked(half):
    with pytest.raises(RowError, match=f"'{half}' is not a list of messages"):
        parse_row(line({**GOOD, half: "Four."}))


def test_invalid_json_is_an_error():
    with pytest.raises(RowError, match="invalid JSON"):
        parse_row(line(GOOD)[:-5])


def test_too_deep_nesting_is_an_error():
    with pytest.raises(RowError, match=r"^invalid JSON: nested too deeply$"):
        parse_row(b'{"chosen": ' + b"[" * 200_000)


def test_first_shape_that_recognises_a_row_converts_it(monkeypatch):
    """A shape with a prompt of its own, put before MiniMind's, takes the rows that have a prompt and no others."""

    def convert(row):
        prompt = [{"role": "user", "content": row["prompt"]}]
        halves = {half: [*prompt, {"role": "assistant", "content": row[half]}] for half in ("chosen", "rejected")}
        return checked_row(**halves)

    added = RowShape(description="an object with 'prompt'", recognise=lambda row: "prompt" in row, convert=convert)
    monkeypatch.setattr(shapes, "SHAPES", {"prompt": added, **shapes.SHAPES})
    texts = {"prompt": "What is two and two?", "chosen": "Four.", "rejected": "Five."}
    assert parse_row(line(texts)) == parse_row(line(GOOD)) == PreferenceRow(**GOOD)
    with pytest.raises(RowError, match="must be an object with 'prompt' or an object with 'chosen' and 'rejected'"):
        parse_row(line({}))

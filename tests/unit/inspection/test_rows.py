"""Rows of a source: refused ones by reason, shapes, counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from minimind.data.rows import BadRow
from minimind.data.sources import open_source
from minimind.data.sources.source import ROW, Source
from minimind.inspection.rows import RefusedRows, describe_source, group_reasons
from tests.unit.inspection.made import made_table


def bad(line: int, reason: str) -> BadRow:
    return BadRow(line=line, reason=reason, tokenized=False)


SOURCE = Source(name="a.parquet", files=(Path("a.parquet"),), unit=ROW)


def test_reasons_that_differ_in_numbers_are_one():
    rows = [
        bad(2, "'chosen' has no assistant turn"),
        *(bad(line, f"invalid JSON: Expecting value at column {line}") for line in range(3, 13)),
        bad(20, "'chosen2' has no assistant turn"),
    ]
    assert group_reasons(SOURCE, rows) == (
        RefusedRows(
            reason="invalid JSON: Expecting value at column 3", rows=10, first="rows 3, 4, 5, 6, 7, 8, 9, 10, ..."
        ),
        RefusedRows(reason="'chosen' has no assistant turn", rows=1, first="row 2"),
        RefusedRows(reason="'chosen2' has no assistant turn", rows=1, first="row 20"),
    )


def test_a_long_reason_is_shortened_and_many_reasons_are_counted_only():
    rows = [bad(line, f"{chr(97 + line)} " * 1000) for line in range(25)]
    groups = group_reasons(SOURCE, rows)
    assert len(groups) == 20
    assert max(len(group.reason) for group in groups) == 400


def test_refused_rows_are_shown_by_their_beginning(write_rows):
    """JSON lines as they are, with what breaks a line as a space; each reason with its first row."""
    path = write_rows('{"chosen": [],\t"rejected": 1}', "{broken " + "x" * 500)
    path.write_bytes(path.read_bytes() + b'{"chosen": "\xff"}\n{fine\n')
    rows = [bad(1, "no"), bad(2, "broken"), bad(4, "broken"), bad(3, "bytes")]
    found = {group.reason: group.excerpt for group in group_reasons(open_source(path), rows)}
    assert found["no"] == '{"chosen": [], "rejected": 1}'
    assert found["broken"] == "{broken " + "x" * 112 + "..."
    assert found["bytes"] == '{"chosen": "\ufffd"}'


def test_rows_with_columns_are_shown_too(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("chosen,rejected\none,two\n" + "x" * 1000 + ",\n", encoding="utf-8")
    first, second = (group.excerpt for group in group_reasons(open_source(path), [bad(1, "a"), bad(2, "b")]))
    assert first == "{'chosen': 'one', 'rejected': 'two'}"
    assert len(second) < 130


def test_a_source_in_numbers():
    table = made_table(
        (1, 1, 1), (1, 1, 1), bad=(bad(3, "wrong"),), shapes={"trl": 3}, unused={"column 'a'": 1, "column 'b'": 2}
    )
    table = dataclasses.replace(table, selected=np.array([1]))
    found = describe_source(table, 2, ["one", "two"])
    assert (found.name, found.rows, found.pairs, found.selected, found.refused_rows) == ("pairs.jsonl", 3, 2, 1, 1)
    assert list(found.shapes.values()) == [3]
    assert list(found.unused.items()) == [("column 'b'", 2), ("column 'a'", 1)]
    assert found.messages == ("one", "two")

"""Parquet and Arrow files: values, nulls that a column invents, bounds, damage."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minimind.data.sources import RowError, arrow_rows
from minimind.data.sources.arrow_rows import read_arrow
from minimind.data.sources.content import Kind
from minimind.data.sources.csv_rows import BadTableError
from tests.unit.data.sources.files import arrow, parquet

CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "add", "arguments": {"a": 1}}]}
ROWS = [
    {"chosen": [{"role": "user", "content": "?"}, CALL], "score": None, "extra": {"x": None}},
    {"chosen": [{"role": "tool", "content": "4", "name": "add"}], "score": 1.5, "extra": {"y": [None, "z"]}},
]
KINDS = {
    Kind.PARQUET: parquet,
    Kind.ARROW_FILE: arrow,
    Kind.ARROW_STREAM: lambda rows: arrow(rows, is_file=False),
}


@pytest.fixture
def read(tmp_path):
    def read(content: bytes, kind: Kind = Kind.PARQUET) -> list:
        (tmp_path / "a").write_bytes(content)
        return [row for _, row in read_arrow(tmp_path / "a", kind)]

    return read


@pytest.mark.parametrize("kind", KINDS)
def test_nulls_of_objects_are_left_out(read, kind):
    """In a column every object has the keys of all; of a null nobody knows whether the writer had it."""
    one, other = read(KINDS[kind](ROWS), kind)
    assert one == {"chosen": [{"role": "user", "content": "?"}, CALL], "score": None, "extra": {}}
    assert other == {**ROWS[1], "extra": {"y": [None, "z"]}}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_many_batches_keep_their_order(read, kind, monkeypatch):
    monkeypatch.setattr(arrow_rows, "_BATCH_ROWS", 3)
    rows = [{"a": f"{index}"} for index in range(20)]
    assert read(KINDS[kind](rows), kind) == rows


def repeated(nested: bool) -> pa.Table:
    """Twenty rows with a text of a MiB each, stored once; or one row with twenty."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 20, pa.int32()), pa.array(["x" * 2**20]))
    column = pa.ListArray.from_arrays(pa.array([0, 20], pa.int32()), texts) if nested else texts
    return pa.table({"a": column, "b": ["y"] * len(column)})


@pytest.mark.parametrize("stored", ["parquet", "plain parquet", "arrow"])
@pytest.mark.parametrize("nested", [True, False])
def test_repeated_texts_are_counted_before_they_are_multiplied(tmp_path, monkeypatch, stored, nested):
    """Twenty MiB in a file of a few KiB; with a reader that multiplies them, the peak would show it."""
    path, table = tmp_path / "a", repeated(nested)
    if stored == "arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(
            table, path, compression="zstd", store_schema=stored == "parquet", dictionary_pagesize_limit=2**30
        )
    kind = Kind.ARROW_FILE if stored == "arrow" else Kind.PARQUET
    monkeypatch.setattr(arrow_rows, "ROW_BYTES", 2**22)
    before = pa.default_memory_pool().max_memory()
    rows = [row for _, row in read_arrow(path, kind)]
    assert pa.default_memory_pool().max_memory() - before < 16 * 2**20
    assert [isinstance(row, RowError) for row in rows] == ([True] if nested else [False] * 20)
    monkeypatch.setattr(arrow_rows, "FREE_BYTES", 2**21)
    monkeypatch.setattr(arrow_rows, "RATIO", 1)
    with pytest.raises(BadTableError, match=r"it unpacks to more than . MiB; preference data do not"):
        list(read_arrow(path, kind))


def test_many_columns_are_refused(read, monkeypatch):
    monkeypatch.setattr(arrow_rows, "MOST_COLUMNS", 2)
    for kind, make in KINDS.items():
        with pytest.raises(BadTableError, match="it has 3 columns; 2 are the most"):
            read(make(ROWS), kind)


def test_large_footer_is_not_read(read):
    content = bytearray(parquet(ROWS))
    content[-8:-4] = (2**30).to_bytes(4, "little")
    with pytest.raises(BadTableError, match="its footer has 1024 MiB; 32 MiB are the most"):
        read(bytes(content))
    with pytest.raises(BadTableError, match=r"damaged: its footer would have \d+ bytes, and the file has 16"):
        read(parquet(ROWS)[:4] + parquet(ROWS)[-12:])


def test_column_that_is_there_twice_is_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["1"])] * 2, ["a", "a"])
    pq.write_table(table, tmp_path / "a")
    with pytest.raises(BadTableError, match="it has the column 'a' twice"):
        list(read_arrow(tmp_path / "a", Kind.PARQUET))


def test_column_that_python_cannot_hold_is_named(tmp_path):
    table = pa.table({"a": ["x"], "m": pa.array([[("k", 1), ("k", 2)]], pa.map_(pa.string(), pa.int64()))})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(BadTableError, match=r"its column 'm' cannot be read \(.*duplicate key.*\); leave it out"):
        list(read_arrow(tmp_path / "a.parquet", Kind.PARQUET))


def test_views_of_texts_are_read(tmp_path):
    table = pa.table({"a": pa.array(["x", None, "y" * 40], pa.string_view())})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    for name, kind in (("a.parquet", Kind.PARQUET), ("a.arrow", Kind.ARROW_STREAM)):
        assert [row for _, row in read_arrow(tmp_path / name, kind)] == table.to_pylist()


def test_text_that_is_not_utf8_is_refused(tmp_path):
    wrong = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
    pq.write_table(pa.table({"a": wrong}), tmp_path / "a")
    with pytest.raises(BadTableError, match=r"cannot be read after row 0: .*Invalid UTF8"):
        list(read_arrow(tmp_path / "a", Kind.PARQUET))

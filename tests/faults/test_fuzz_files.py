"""Damaged files of every kind, packed or not: rows, a reason for each bad row, or one of our own errors."""

from __future__ import annotations

import datetime
import decimal
import json

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimind.data.shapes import parse_rows
from minimind.data.sources import RowError, find_sources
from minimind.errors import DataError
from tests.conftest import pair
from tests.faults.fuzzing import damaged, fuzzed, json_values, only_our_errors
from tests.unit.data.sources.files import ENCODED, JSON, PACKED, TABLES, TEXT_TABLES, json_lines

TEXTS = [{"prompt": f"Wer, \n{n}?", "chosen": f'"a{n}"', "rejected": "你好 😀"} for n in range(6)]
PAIRS = [pair(f"q{n}?", "yes", "no") for n in range(6)]
FILES = {
    **{name: make(PAIRS) for name, make in {**JSON, **TABLES}.items()},
    **{f"{name} of texts": make(TEXTS) for name, make in {**TABLES, **TEXT_TABLES}.items()},
    **{f"lines in {name}": encode(json_lines(PAIRS)) for name, encode in ENCODED.items()},
}
FILES |= {f"{name} in {packed}": pack(FILES[name]) for name in ("lines", "parquet", "csv of texts")
          for packed, pack in PACKED.items()}  # fmt: skip


def read_all(word: str) -> tuple[int, list[str]]:
    """Number of pairs of what a user gives, and the reasons of bad rows."""
    pairs, reasons = 0, []
    for source in find_sources([word]):
        for _, content in source.rows():
            try:
                if isinstance(content, RowError):
                    raise content
                pairs += len(parse_rows(content))
            except RowError as error:
                reasons.append(str(error))
    return pairs, reasons


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_whole(tmp_path, name):
    (tmp_path / "pairs").write_bytes(FILES[name])
    assert read_all(str(tmp_path / "pairs")) == (6, [])


@pytest.mark.parametrize("name", FILES)
@fuzzed(15)
@given(data=st.data())
def test_damaged_files(tmp_path_factory, name, data):
    path = tmp_path_factory.mktemp("fuzz") / "pairs"
    path.write_bytes(data.draw(damaged(FILES[name])))
    with only_our_errors():
        _, reasons = read_all(str(path))
        assert all(len(reason) < 1000 for reason in reasons)


@pytest.mark.parametrize("name", [name for name in FILES if "lines" not in name and "objects" not in name])
def test_files_that_are_cut_are_refused(tmp_path, name):
    """Rows before the cut are not taken for the whole, wherever it is. Of a table the last row may be whole."""
    content, path = FILES[name], tmp_path / "pairs"
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(content[: int(share * len(content))])
        if name in ("csv of texts", "tsv of texts"):
            with only_our_errors():
                read_all(str(path))
            continue
        with pytest.raises(DataError, match="pairs: "):
            read_all(str(path))


@fuzzed(60)
@given(rows=st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(TEXTS[0], json_values())), min_size=1))
def test_columns_of_other_types_in_each_row(tmp_path_factory, rows):
    """Dictionaries in one row and texts in the next, and whatever else JSON has."""
    path = tmp_path_factory.mktemp("fuzz") / "pairs"
    path.write_bytes(b"\n".join(json.dumps(row).encode() for row in rows))
    with only_our_errors():
        pairs, reasons = read_all(str(path))
        assert pairs + len(reasons) >= 1


def test_a_column_of_texts_and_objects(tmp_path):
    rows = [TEXTS[0], {**TEXTS[0], "prompt": {"a": 1}}, {**TEXTS[0], "chosen": {"text": "a"}}, PAIRS[0], TEXTS[1]]
    (tmp_path / "pairs").write_bytes(json_lines(rows))
    pairs, reasons = read_all(str(tmp_path / "pairs"))
    assert (pairs, len(reasons)) == (3, 2)


DAY = datetime.date(2020, 1, 1)
COLUMNS = {
    "numbers": [1, 2],
    "halves": pa.array([1.5, float("nan")]),
    "days": [DAY, DAY],
    "decimals": [decimal.Decimal("1.5"), None],
    "bytes": [b"\xff", b"a"],
    "maps": pa.array([[("a", "b")], []], pa.map_(pa.string(), pa.string())),
    "nulls": [None, None],
    "times": pa.array([2**62, 1], pa.timestamp("us")),
    "large texts": pa.array(["a", "b"], pa.large_string()),
    "views": pa.array(["a", "b"], pa.string_view()),
    "codes": pa.array(["a", "b"]).dictionary_encode(),
    "lists of lists": [[["a"]], [[]]],
    "fixed lists": pa.array([["a", "b"]] * 2, pa.list_(pa.string(), 2)),
    "unions": pa.UnionArray.from_sparse(pa.array([0, 0], pa.int8()), [pa.array(["a", "b"])]),
    "lengths of time": pa.array([1, 2], pa.duration("s")),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("place", ["prompt", "chosen", "rejected", "beside"])
def test_columns_of_every_type(tmp_path, name, place):
    """Each row is a pair or has a reason, or the file is refused by one error that names the column or the row."""
    table = pa.table({**{key: [row[key] for row in TEXTS[:2]] for key in TEXTS[0]}, place: COLUMNS[name]})
    found = []
    for kind in ("parquet", "arrow"):
        path = tmp_path / kind
        try:
            if kind == "parquet":
                pq.write_table(table, path)
            else:
                with pa.ipc.new_file(path, table.schema) as writer:
                    writer.write_table(table)
        except pa.ArrowNotImplementedError:
            continue
        with only_our_errors():
            pairs, reasons = read_all(str(path))
            assert pairs + len(reasons) == 2
            found.append((pairs, reasons))
    assert found[1:] in ([], found[:1])

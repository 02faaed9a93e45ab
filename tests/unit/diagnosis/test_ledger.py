"""The files of a ledger: what is written is read, in order, and a resumed run drops what comes after its checkpoint."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from minimind.diagnosis import ledger
from minimind.diagnosis.ledger import EVAL, TRAIN, LedgerSource
from minimind.errors import DataError
from tests.unit.diagnosis.made_runs import PAIRS, made

OTHER = LedgerSource(
    name="rows.parquet", files=("/data/a.parquet", "/data/b.parquet"), sizes=(1, 2), times=(3, 4), unit="row"
)


def same(one, other):
    assert (one.sources, one.sets) == (other.sources, other.sets)
    for name in ("step", "set", "source", "line", "part", "pair", "prompt_tokens"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in ledger.VALUES:
        np.testing.assert_array_equal(one.values[name], other.values[name])


def test_what_is_appended_is_read_again_by_step_and_pair(tmp_path):
    first = made([2, 1, 1], [1, 3, 2], [0.5, -1.0, np.nan], chosen_logps=[-1.5, -2.0, 3.0])
    second = made([2, 2], [7, 5], name=EVAL, source=OTHER, parts=[1, 0])
    ledger.append(tmp_path, first)
    ledger.append(tmp_path, second)
    found = ledger.read(tmp_path)
    assert found.sources == (PAIRS, OTHER)
    assert found.sets == (TRAIN, EVAL)
    assert found.evaluated == (EVAL,)
    assert found.step.tolist() == [1, 1, 2, 2, 2]
    assert found.line.tolist() == [2, 3, 1, 5, 7]
    assert found.part.tolist() == [0, 0, 0, 0, 1]
    places = [found.sources[place].place(line) for place, line in zip(found.source, found.line, strict=True)]
    assert places[2:4] == ["pairs.jsonl, line 1", "rows.parquet, row 5"]
    np.testing.assert_array_equal(found.of_set(TRAIN).values["margin"], np.float32([np.nan, -1.0, 0.5]))
    assert found.of_set(TRAIN).values["chosen_logps"].tolist() == [3.0, -2.0, -1.5]
    assert len(found.of_set("eval/zh")) == 0
    assert ledger.size(tmp_path) == sum(path.stat().st_size for path in (tmp_path / "ledger").iterdir())


def test_joined_ledgers_keep_their_sources_and_sets():
    other = dataclasses.replace(made([1], [4], name="eval/zh"), sources=(OTHER, PAIRS), source=np.array([1]))
    both = ledger.joined([made([1], [9]), other])
    assert both.sources == (PAIRS, OTHER)
    assert both.source.tolist() == [0, 0]
    assert [both.sets[place] for place in both.set] == [TRAIN, "eval/zh"]


def test_rows_after_a_step_are_dropped_and_no_file_is_half_of_another(tmp_path):
    for steps in ([1, 2], [3, 4], [5, 6]):
        ledger.append(tmp_path, made(steps, [1, 2]))
    ledger.drop_after(tmp_path, 3)
    assert ledger.read(tmp_path).step.tolist() == [1, 2, 3]
    assert [path.name for path in sorted((tmp_path / "ledger").iterdir())] == ["000001.parquet", "000002.parquet"]
    # A run that goes on writes a file of its own.
    ledger.append(tmp_path, made([4], [2]))
    assert ledger.read(tmp_path).step.tolist() == [1, 2, 3, 4]
    ledger.drop_after(tmp_path, 0)
    assert ledger.size(tmp_path) == 0


def test_dropping_nothing_leaves_the_files_alone(tmp_path):
    ledger.drop_after(tmp_path, 3)
    ledger.append(tmp_path, made([1], [1]))
    (file,) = (tmp_path / "ledger").iterdir()
    before = file.stat().st_mtime_ns
    ledger.drop_after(tmp_path, 1)
    assert file.stat().st_mtime_ns == before


def test_a_write_does_not_wait_for_pandas(tmp_path, monkeypatch):
    """`pyarrow.array` imports it, which would take half a second of the first save."""
    import pyarrow as pa

    ledger.load_libraries()
    monkeypatch.setattr(pa, "array", None)
    ledger.append(tmp_path, made([1], [1], [0.5]))
    assert ledger.read(tmp_path).values["margin"].tolist() == [0.5]


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    def full(table, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        ledger.append(tmp_path, made([1], [1]))
    assert list((tmp_path / "ledger").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"PAR1 no parquet"])
def test_a_damaged_file_is_named(tmp_path, content):
    ledger.append(tmp_path, made([1], [1]))
    (tmp_path / "ledger/000002.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"000002\.parquet: not a file of a ledger"):
        ledger.read(tmp_path)


def test_another_parquet_file_is_not_a_ledger(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "ledger").mkdir()
    pq.write_table(pa.table({"step": [1]}), tmp_path / "ledger/000001.parquet")
    with pytest.raises(DataError, match="not a file of a ledger"):
        ledger.read(tmp_path)


def test_a_run_without_a_ledger_says_how_to_get_one(tmp_path):
    with pytest.raises(DataError, match="no ledger; train with --ledger 1"):
        ledger.read(tmp_path)

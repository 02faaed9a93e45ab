"""The measurement of tokenising, on few rows; TRL's part needs its package."""

from __future__ import annotations

import json

import pytest

from minimind import demo
from minimind.data.sources import open_source
from tests.benchmarks import tokenising


@pytest.mark.long
def test_memory_is_measured_in_a_process_of_its_own(tmp_path, capsys):
    tokenising.main(["--memory", "30", "--folder", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" rows")[0].strip() for line in lines[1:]] == ["30"]
    assert list(tmp_path.iterdir()) == []


def test_made_rows_are_the_same_each_time_and_differ_from_each_other():
    rows = list(tokenising.made_rows(50))
    assert rows == list(tokenising.made_rows(50))
    assert len(set(rows)) == 50
    assert all(json.loads(row)["chosen"] != json.loads(row)["rejected"] for row in rows)


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    lines = demo.TRAIN_PATH.read_text(encoding="utf-8").splitlines(keepends=True)[:30]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_rows_that_warm_up_are_other_rows(tmp_path, pairs):
    warm = tokenising.warmup_file(pairs, tmp_path)
    assert len(list(open_source(warm).rows())) == 20
    assert not set(warm.read_text(encoding="utf-8").splitlines()) & set(pairs.read_text(encoding="utf-8").splitlines())


def test_both_ways_are_timed_on_the_same_rows(tmp_path, tokenizer, pairs):
    warm = tokenising.warmup_file(pairs, tmp_path)
    rows, seconds = tokenising.our_seconds(tokenizer, [warm, pairs], 512, tmp_path / "cache")
    assert rows == 30
    assert seconds > 0
    pytest.importorskip("trl")
    rows, seconds = tokenising.trl_seconds(tokenizer, [warm, pairs], 512, tmp_path / "trl")
    assert rows == 30
    assert seconds > 0


@pytest.mark.long
def test_starts_are_measured_in_turn(capsys):
    tokenising.main(["--start", "--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    alone, rank, ratio = (float(line.split("(")[0].split()[-1]) for line in lines[1:])
    assert alone > 0
    assert ratio == pytest.approx(rank / alone, rel=0.1)

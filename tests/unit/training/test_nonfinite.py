"""The pairs of a step that was not finite can be found again, and those of the micro-batch that was not are named."""

from __future__ import annotations

import json
from pathlib import Path

from minimind.training.nonfinite import MicroBatch, blame, write_pairs

DATA = Path("pairs.jsonl")


def batch(*lines, finite=True):
    return MicroBatch(lines=lines, finite=finite)


def test_rows_are_written_with_their_place(write_rows, tmp_path):
    data = write_rows({"n": 1}, "", {"n": 3}, {"n": 4})
    told = write_pairs(tmp_path, 12, data, [[batch(4), batch(1, finite=False)], [batch(3), batch(4)]])
    path = tmp_path / "nonfinite_step00000012.jsonl"
    assert told == f"stand in {path}, by rank and micro-batch"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found == [
        {"line": 4, "rank": 0, "micro_batch": 1, "finite": True, "row": {"n": 4}},
        {"line": 1, "rank": 0, "micro_batch": 2, "finite": False, "row": {"n": 1}},
        {"line": 3, "rank": 1, "micro_batch": 1, "finite": True, "row": {"n": 3}},
        {"line": 4, "rank": 1, "micro_batch": 2, "finite": True, "row": {"n": 4}},
    ]


def test_data_that_has_gone_does_not_hide_the_error(tmp_path):
    assert "could not be written" in write_pairs(tmp_path, 1, tmp_path / "gone.jsonl", [[batch(1)]])


def test_only_micro_batches_that_were_not_finite_are_blamed():
    ranks = [[batch(5, 9), batch(70, 2)], [batch(8, 4, finite=False), batch(6, 1)]]
    assert "in 1 of 4 micro-batches: pairs at lines 4, 8 of pairs.jsonl" in blame(ranks, DATA)


def test_an_overflow_of_the_gradient_alone_blames_the_step():
    told = blame([[batch(5, 9)], [batch(8, 4)]], DATA)
    assert "The losses of all micro-batches were finite" in told
    assert "pairs at lines 4, 5, 8, 9 of pairs.jsonl" in told


def test_many_lines_are_left_to_the_file():
    told = blame([[batch(*range(1, 11), finite=False)]], DATA)
    assert told.endswith("at lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 of pairs.jsonl")
    told = blame([[batch(*range(100, 0, -1), finite=False)]], DATA)
    assert told.endswith("at lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 90 more of pairs.jsonl")

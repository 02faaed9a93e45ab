"""The pairs of a step that was not finite can be found again."""

from __future__ import annotations

import json

from minimind.training.nonfinite import write_pairs


def test_rows_are_written_with_their_place(write_rows, tmp_path):
    data = write_rows({"n": 1}, "", {"n": 3}, {"n": 4})
    told = write_pairs(tmp_path, 12, data, [[[4], [1]], [[3], [4]]])
    path = tmp_path / "nonfinite_step00000012.jsonl"
    assert told == f"stand in {path}, by rank and micro-batch"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found == [
        {"line": 4, "rank": 0, "micro_batch": 1, "row": {"n": 4}},
        {"line": 1, "rank": 0, "micro_batch": 2, "row": {"n": 1}},
        {"line": 3, "rank": 1, "micro_batch": 1, "row": {"n": 3}},
        {"line": 4, "rank": 1, "micro_batch": 2, "row": {"n": 4}},
    ]


def test_data_that_has_gone_does_not_hide_the_error(tmp_path):
    assert "could not be written" in write_pairs(tmp_path, 1, tmp_path / "gone.jsonl", [[[1]]])

"""Report of a step that was not finite: its pairs are written to a file, and the affected ones are named."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch

from minimind.data.sources.source import LINE, Source, open_source
from minimind.errors import TrainingError
from minimind.ranks.world import World
from minimind.training.nonfinite import MicroBatch, NonFiniteReport, describe_nonfinite, write_pairs

DATA = Source(name="pairs.jsonl", files=(Path("pairs.jsonl"),), unit=LINE)


def batch(*lines, finite=True):
    return MicroBatch(lines=lines, finite=finite)


def test_rows_are_written_with_their_place(write_rows, tmp_path):
    data = open_source(write_rows({"n": 1}, "", {"n": 3}, {"n": 4}))
    message = write_pairs(tmp_path, 12, data, [[batch(4), batch(1, finite=False)], [batch(3), batch(4)]])
    path = tmp_path / "nonfinite_step00000012.jsonl"
    assert message == f"are in {path}, by rank and micro-batch"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found == [
        {"line": 4, "rank": 0, "micro_batch": 1, "finite": True, "row": {"n": 4}},
        {"line": 1, "rank": 0, "micro_batch": 2, "finite": False, "row": {"n": 1}},
        {"line": 3, "rank": 1, "micro_batch": 1, "finite": True, "row": {"n": 3}},
        {"line": 4, "rank": 1, "micro_batch": 2, "finite": True, "row": {"n": 4}},
    ]


def test_missing_data_does_not_hide_the_error(tmp_path):
    assert "could not be written" in write_pairs(tmp_path, 1, DATA, [[batch(1)]])


def test_only_micro_batches_that_were_not_finite_are_named():
    ranks = [[batch(5, 9), batch(70, 2)], [batch(8, 4, finite=False), batch(6, 1)]]
    assert "in 1 of 4 micro-batches: pairs in lines 4, 8 of pairs.jsonl" in describe_nonfinite(ranks, DATA)


def test_an_overflow_of_the_gradient_alone_names_all_pairs_of_the_step():
    message = describe_nonfinite([[batch(5, 9)], [batch(8, 4)]], DATA)
    assert "The losses of all micro-batches were finite" in message
    assert "pairs in lines 4, 5, 8, 9 of pairs.jsonl" in message


def test_a_message_lists_ten_lines_at_most():
    message = describe_nonfinite([[batch(*range(1, 11), finite=False)]], DATA)
    assert message.endswith("in lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 of pairs.jsonl")
    message = describe_nonfinite([[batch(*range(100, 0, -1), finite=False)]], DATA)
    assert message.endswith("in lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ... of pairs.jsonl")


def test_the_error_names_step_checkpoint_and_pairs(one_rank, write_rows, tmp_path):
    data = open_source(write_rows({"n": 1}, {"n": 2}))
    (tmp_path / "latest").write_text("step00000004")
    report = NonFiniteReport(
        folder=tmp_path,
        data=data,
        world=World(rank=0, local_rank=0, size=1, device=torch.device("cpu")),
        latest=tmp_path / "latest",
    )
    error = TrainingError("the gradient is not finite", agreed=True, finite=[True, False])
    found = report.error_at(7, [SimpleNamespace(lines=(1,)), SimpleNamespace(lines=(2,))], error)
    assert found.agreed
    assert str(found) == (
        "step 7: the gradient is not finite. The update was not made; the newest checkpoint is step00000004. Losses or "
        f"log-probs were not finite in 1 of 2 micro-batches: pairs in lines 2 of {data.name}. The step's pairs are in "
        f"{tmp_path / 'nonfinite_step00000007.jsonl'}, by rank and micro-batch."
    )

"""Report of a step that was not finite: its pairs are written to a file, and the affected ones are named."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from minimind.data.pair_tables import PairTables
from minimind.data.sources.source import LINE, ROW, Source, open_source
from minimind.errors import TrainingError
from minimind.ranks.world import World
from minimind.training.nonfinite import MicroBatch, NonFiniteReport, describe_nonfinite, write_pairs


def tables_of(*sources: tuple[Source, list[int]]) -> PairTables:
    """Tables of which only the sources and the numbers of the rows are known."""
    return PairTables(
        tables=tuple(SimpleNamespace(source=one, lines=np.array(lines), items="pairs") for one, lines in sources)
    )


def named(name: str, unit: str = LINE) -> Source:
    return Source(name=name, files=(Path(name),), unit=unit)


# Pair 0 is in line 1, and so on, up to pair 99; then three pairs of two rows of another file.
DATA = tables_of((named("pairs.jsonl"), list(range(1, 101))), (named("more.parquet", ROW), [1, 1, 2]))


def batch(*lines, finite=True):
    """A micro-batch of the pairs in some lines of the first file."""
    return MicroBatch(indices=[line - 1 for line in lines], finite=finite)


def test_rows_are_written_with_their_place(write_rows, tmp_path):
    one = open_source(write_rows({"n": 1}, "", {"n": 3}, {"n": 4}))
    other = open_source(write_rows([{"m": 1}, {"m": 2}], name="array.json"))
    data = tables_of((one, [1, 3, 4]), (other, [1, 2, 2]))
    ranks = [[[2], [0]], [[1], [2, 5]]]
    batches = [[MicroBatch(indices=one, finite=one != [0]) for one in rank] for rank in ranks]
    path = tmp_path / "nonfinite_step00000012.jsonl"
    assert write_pairs(tmp_path, 12, data, batches) == f"are in {path}, by rank and micro-batch"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    first, second = {"source": one.name}, {"source": other.name}
    assert found == [
        {**first, "line": 4, "rank": 0, "micro_batch": 1, "finite": True, "row": {"n": 4}},
        {**first, "line": 1, "rank": 0, "micro_batch": 2, "finite": False, "row": {"n": 1}},
        {**first, "line": 3, "rank": 1, "micro_batch": 1, "finite": True, "row": {"n": 3}},
        {**first, "line": 4, "rank": 1, "micro_batch": 2, "finite": True, "row": {"n": 4}},
        {**second, "line": 2, "rank": 1, "micro_batch": 2, "finite": True, "row": {"m": 2}},
    ]


def test_missing_data_does_not_hide_the_error(tmp_path):
    assert "could not be written" in write_pairs(tmp_path, 1, DATA, [[batch(1)]])


def test_only_micro_batches_that_were_not_finite_are_named():
    ranks = [[batch(5, 9), batch(70, 2)], [batch(8, 4, finite=False), batch(6, 1)]]
    assert "in 1 of 4 micro-batches: pairs in lines 4, 8 of pairs.jsonl" in describe_nonfinite(ranks, DATA)


def test_an_overflow_of_the_gradient_alone_names_all_pairs_of_the_step():
    message = describe_nonfinite([[batch(5, 9)], [batch(8), MicroBatch(indices=[102, 101, 100], finite=True)]], DATA)
    assert "The losses of all micro-batches were finite" in message
    assert message.endswith("pairs in lines 5, 8, 9 of pairs.jsonl, rows 1, 2 of more.parquet")


def test_a_message_lists_ten_rows_of_a_source_at_most():
    message = describe_nonfinite([[batch(*range(1, 11), finite=False)]], DATA)
    assert message.endswith("in lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 of pairs.jsonl")
    message = describe_nonfinite([[batch(*range(100, 0, -1), finite=False)]], DATA)
    assert message.endswith("in lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ... of pairs.jsonl")


def test_the_error_names_step_checkpoint_and_pairs(one_rank, write_rows, tmp_path):
    source = open_source(write_rows({"n": 1}, {"n": 2}))
    (tmp_path / "latest").write_text("step00000004")
    report = NonFiniteReport(
        folder=tmp_path,
        data=tables_of((source, [1, 2])),
        world=World(rank=0, local_rank=0, size=1, device=torch.device("cpu")),
        latest=tmp_path / "latest",
    )
    error = TrainingError("the gradient is not finite", agreed=True, finite=[True, False])
    found = report.error_at(7, [SimpleNamespace(indices=(0,)), SimpleNamespace(indices=(1,))], error)
    assert found.agreed
    assert str(found) == (
        "step 7: the gradient is not finite. The update was not made; the newest checkpoint is step00000004. Losses or "
        f"log-probs were not finite in 1 of 2 micro-batches: pairs in lines 2 of {source.name}. The step's pairs "
        f"are in {tmp_path / 'nonfinite_step00000007.jsonl'}, by rank and micro-batch."
    )

"""Suspects: ranked rows that training can read again, with where they are from."""

from __future__ import annotations

import json

import numpy as np
import pytest

from minimind.config.data import DataConfig
from minimind.data.shapes import parse_rows
from minimind.diagnosis import ledger
from minimind.diagnosis.suspects import write_suspects
from minimind.errors import DataError
from tests.unit.diagnosis.made_runs import made, made_run, write_pairs


def test_suspects_are_ranked_rows_with_their_places(tmp_path):
    run = made_run(tmp_path / "run")
    path = tmp_path / "suspects.jsonl"
    assert write_suspects(ledger.read(run), DataConfig(), path) == 6
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["line"] for row in rows] == [12, 10, 8, 6, 4, 2]
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert rows[0]["score"] == pytest.approx(1 / (1 + np.exp(-1.0)), abs=1e-6)
    assert (rows[0]["file"], rows[0]["times"]) == ("run.jsonl", 1)
    (pair,) = parse_rows(json.dumps(rows[0]).encode())
    assert pair.rejected[-1]["content"] == "坏12"
    assert set(pair.unused) == {"file", "line", "times", "score"}


def test_what_the_template_gets_stays_with_a_row(tmp_path):
    path = tmp_path / "pairs.jsonl"
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    row = {
        "prompt": "ask",
        "chosen": "a",
        "rejected": "b",
        "tools": tools,
        "chat_template_kwargs": {"thinking": 1},
        "score_chosen": 2.0,
        "score_rejected": 1.0,
    }
    path.write_text(json.dumps(row) + "\n")
    source = ledger.LedgerSource.of("x", [path], "line")
    write_suspects(made([1], [1], [-1.0], source=source), DataConfig(), tmp_path / "out.jsonl")
    (pair,) = parse_rows((tmp_path / "out.jsonl").read_bytes())
    assert pair.tools == tools
    assert (dict(pair.template_kwargs), pair.scores) == ({"thinking": 1}, (2.0, 1.0))


@pytest.mark.parametrize("rows", [made([1], [1], [np.nan]), made([1], [1], [-1.0], name="eval")])
def test_without_margins_of_training_pairs_there_are_none(tmp_path, rows):
    with pytest.raises(DataError, match="no margins of training pairs"):
        write_suspects(rows, DataConfig(), tmp_path / "out.jsonl")


def test_a_changed_file_is_refused_and_nothing_is_written(tmp_path):
    source = write_pairs(tmp_path / "pairs.jsonl", 2)
    (tmp_path / "pairs.jsonl").write_text("")
    with pytest.raises(DataError, match=r"--suspects: .*pairs\.jsonl has changed since the run"):
        write_suspects(made([1], [1], [-1.0], source=source), DataConfig(), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    source = write_pairs(tmp_path / "pairs.jsonl", 2)
    with pytest.raises(DataError, match=r"--suspects .*no/out\.jsonl: cannot be written"):
        write_suspects(made([1], [1], [-1.0], source=source), DataConfig(), tmp_path / "no/out.jsonl")

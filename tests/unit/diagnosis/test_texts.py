"""Texts of pairs: read from their lines, unless the file is another one now."""

from __future__ import annotations

import json
import os

from minimind.config.data import DataConfig
from minimind.diagnosis.ledger import LedgerSource
from minimind.diagnosis.texts import data_flags, obstacle, places_of, prompt_of, read_pairs, written
from tests.unit.diagnosis.made_runs import made, write_pairs


def test_pairs_are_read_from_their_lines(tmp_path):
    source = write_pairs(tmp_path / "pairs.jsonl", 5)
    rows = made([1, 1], [4, 1], source=source)
    assert places_of(rows) == [(0, 4, 0), (0, 1, 0)]
    found = read_pairs([source], [*places_of(rows), (0, 2, 1), (0, 9, 0)], DataConfig())
    # The second pair of line 2 does not exist, nor does line 9.
    assert sorted(found) == [(0, 1, 0), (0, 4, 0)]
    assert found[0, 4, 0].rejected[-1]["content"] == "坏4"
    assert prompt_of(found[0, 4, 0]) == [{"role": "user", "content": "问题4"}]


def test_rows_are_read_as_the_run_read_them(tmp_path):
    path = tmp_path / "answers.jsonl"
    texts = [{"text": text, "score": score} for text, score in (("a", 1), ("b", 3), ("c", 2))]
    path.write_text(json.dumps({"prompt": "ask", "answers": texts}) + "\n")
    source = LedgerSource.of("x", [path], "line")
    data = data_flags({"pairing": {"value": "all"}, "beta": {"value": 1.0}})
    assert data.pairing == "all"
    found = read_pairs([source], [(0, 1, part) for part in range(5)], data)
    assert len(found) == 3


def test_a_file_that_has_changed_or_gone_is_not_read(tmp_path):
    source = write_pairs(tmp_path / "pairs.jsonl", 2)
    assert obstacle(source, DataConfig()) is None
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write("\n")
    assert str(obstacle(source, DataConfig())).endswith("pairs.jsonl has changed since the run")
    assert read_pairs([source], [(0, 1, 0)], DataConfig()) == {}
    source = write_pairs(tmp_path / "pairs.jsonl", 2)
    # A label that is swapped: as many bytes as before.
    os.utime(tmp_path / "pairs.jsonl", ns=(0, 1))
    assert str(obstacle(source, DataConfig())).endswith("pairs.jsonl has changed since the run")
    (tmp_path / "pairs.jsonl").unlink()
    assert str(obstacle(source, DataConfig())).endswith("pairs.jsonl is not there any more")


def test_a_row_that_cannot_be_read_costs_no_other_row(tmp_path):
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, 3)
    first, second, third = path.read_text().splitlines()
    path.write_text(f"{first}\n{'?' * len(second)}\n{third}\n")
    source = LedgerSource.of(path.name, [path], "line")
    assert set(read_pairs([source], [(0, line, 0) for line in (1, 2, 3)], DataConfig())) == {(0, 1, 0), (0, 3, 0)}


def test_a_missing_description_of_the_columns_is_said(tmp_path):
    source = write_pairs(tmp_path / "pairs.jsonl", 1)
    problem = obstacle(source, DataConfig(dataset_info=str(tmp_path / "dataset_info.json")))
    assert str(problem).startswith("pairs.jsonl cannot be read as the run read it (")
    assert "dataset_info.json" in str(problem)


def test_messages_are_written_with_their_roles():
    answer = {"role": "assistant", "content": "yes"}
    assert written([answer]) == "yes"
    assert written([{"role": "user", "content": "q"}, answer]) == "user: q\nassistant: yes"
    assert written([{"role": "assistant", "content": None}]) == ""

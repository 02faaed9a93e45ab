"""The records of a run: what is there is read, what is not there is empty, what is damaged is named."""

from __future__ import annotations

import json

import pytest

from minimind.diagnosis.run_files import read_run
from minimind.errors import DataError
from tests.unit.diagnosis.made_runs import made_run


def test_everything_of_a_run_is_read(tmp_path):
    folder = made_run(tmp_path / "run")
    (folder / "qwen3").mkdir()
    (folder / "qwen3/export.json").write_text('{"to": "qwen3"}')
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/export.json").write_text('{"to": "pth"}')
    run = read_run(folder, [tmp_path / "elsewhere"])
    assert (run.name, run.steps, run.sets) == ("run", 3, ("eval/",))
    assert run.curve("loss") == [(1, 0.7), (2, 0.35), (3, 0.7 / 3)]
    assert run.curve("eval/loss") == [(0, 0.7), (3, 0.4)]
    assert [one["rule"] for one in run.findings] == ["length"]
    assert [one["to"] for one in run.exports] == ["qwen3", "pth"]
    assert (len(run.samples), len(run.rows)) == (3, 24)
    assert run.settings["seed"] == {"value": 42, "origin": "default"}
    assert run.identity["data"] == "abc123"


def test_sets_with_names_and_values_that_are_no_numbers(tmp_path):
    folder = made_run(tmp_path / "run", with_ledger=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "eval/zh/loss": 0.5, "eval/zh/dpo_loss": 0.5, "loss": NaN}\n{"step": 5, "lo')
    run = read_run(folder)
    assert run.sets == ("eval/", "eval/zh/")
    assert run.curve("loss")[-1][0] == 3
    assert (run.steps, run.rows) == (4, None)


def test_only_run_json_is_needed(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    run = read_run(tmp_path)
    assert (run.steps, run.sets, run.exports, run.findings, run.samples) == (0, (), [], [], [])
    assert (run.settings, run.identity) == ({}, {})


def test_another_folder_and_damaged_records_are_named(tmp_path):
    with pytest.raises(DataError, match=r"not the folder of a run: run\.json cannot be read"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run\.json: damaged"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({}))
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(DataError, match=r"metrics\.jsonl: cannot be read"):
        read_run(tmp_path)
    (tmp_path / "metrics.jsonl").rmdir()
    with pytest.raises(DataError, match=r"export\.json: not the record of an export"):
        read_run(tmp_path, [tmp_path / "none"])

"""export.json, and what a person is told of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest

from minimind.conversion.base import Base
from minimind.conversion.record import is_export, record, summary, write_record
from minimind.conversion.rounding import Moved
from minimind.conversion.trained import open_trained
from tests.unit.conversion.made import made, write_run

MOVED = Moved(weights=1000, differing={"float32": 900, "bfloat16": 9, "float16": 899})


@pytest.fixture
def values(tmp_path):
    trained = open_trained(write_run(tmp_path / "run", made(), "start.pth", "abc"), {})
    (tmp_path / "model.pth").write_bytes(b"weights")
    base = Base(weights=None, origin="start.pth", fingerprint="abc")
    return record(
        trained, base, MOVED, to="pth", dtype="bfloat16", logits_differ_by=0.0, files=[tmp_path / "model.pth"]
    )


def test_it_says_what_the_weights_came_from(values, tmp_path):
    assert values["source"]["path"] == str(tmp_path / "run/checkpoints/step00000007")
    assert values["source"]["kind"] == "checkpoint"
    assert values["run"]["path"] == str(tmp_path / "run")
    assert (values["run"]["step"], values["run"]["total_steps"]) == (7, 9)
    assert values["base"] == {"path": "start.pth", "hash": "abc", "not_compared": None, "hash_of_the_run": None}
    assert values["differ_from_base"] == {"float32": 0.9, "bfloat16": 0.009, "float16": 0.899}
    assert values["kept_of_training"]["bfloat16"] == pytest.approx(0.01)
    assert values["recommended_dtype"] == "float16"
    assert values["files"] == {"model.pth": {"bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}}


def test_a_dtype_that_loses_what_training_changed_is_a_warning(values):
    text = "\n".join(summary(values))
    assert "checkpoint, step 7 of 9" in text
    assert "float32 90.00%, bfloat16 0.90%, float16 89.90%" in text
    assert "WARNING: bfloat16 loses 99.00% of what training changed; --dtype float16 keeps 99.89%" in text
    assert values["run"]["packed_base"] is None
    values["run"]["packed_base"] = "nf4"
    assert "trained over a base in 4 bits (nf4)" in "\n".join(summary(values))
    values["dtype"] = "float16"
    assert "WARNING" not in "\n".join(summary(values))
    values["base"]["hash_of_the_run"] = "def"
    assert "WARNING: the run started from others (hash def)" in "\n".join(summary(values))


def test_a_run_over_a_packed_base_is_known(tmp_path):
    run = write_run(tmp_path / "run", made(), "start.pth", "abc")
    trained = dataclasses.replace(open_trained(run, {}), identity={"adapters": {"base": "nf4"}})
    base = Base(weights=None, origin=None, fingerprint=None)
    values = record(trained, base, None, to="pth", dtype="float32", logits_differ_by=None, files=[])
    assert values["run"]["packed_base"] == "nf4"


def test_unknown_start_weights_are_said(values):
    values |= {"differ_from_base": None, "base": {"path": None, "hash": None, "not_compared": "no run is known"}}
    assert "base   not compared: no run is known" in summary(values)


def test_an_export_is_known_by_its_record(values, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "model.pth").touch()
    assert not is_export(folder)
    write_record(values, folder)
    assert is_export(folder)
    assert is_export(folder / "model.pth")
    assert not is_export(folder / "other.pth")
    (folder / "export.json").write_text(json.dumps([]))
    assert not is_export(folder / "model.pth")


def test_a_folder_with_anything_else_in_it_is_the_user_s(values, tmp_path):
    folder = tmp_path / "out"
    (folder / "dpo/checkpoints").mkdir(parents=True)
    (folder / "model.pth").touch()
    write_record(values, folder)
    assert not is_export(folder)
    assert is_export(folder / "model.pth")

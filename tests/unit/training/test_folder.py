"""The run's folder: earlier records are moved aside, metrics after a checkpoint are removed, other files stay."""

from __future__ import annotations

import json

import pytest
import torch

from minimind.config import parse_settings
from minimind.errors import ConfigError
from minimind.ranks.world import World
from minimind.training import folder as folder_module
from minimind.training.folder import drop_ledger_after, drop_metrics_after, open_run_folder
from minimind.training.setup.prepare import prepare
from tests.conftest import REPO

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def prepared_run(save_dir, config=REPO / "ds_configs/zero2.json"):
    return prepare(parse_settings(["--deepspeed", str(config), "--save_dir", str(save_dir)]), WORLD)


def test_records_of_an_earlier_run_are_moved_aside(tmp_path):
    prepared = prepared_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/latest").write_text("step00000001")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "full_sft_512.pth").write_text("weights")
    (tmp_path / "qwen3").mkdir()
    (tmp_path / "qwen3/export.json").write_text("{}")
    (tmp_path / "mine").mkdir()
    for number in (1, 2):
        open_run_folder(prepared, {"pairs": number}, resuming=False, world=WORLD)
        assert json.loads((tmp_path / "run.json").read_text())["identity"] == {"pairs": number}
    hardware = json.loads((tmp_path / "run.json").read_text())["hardware"]
    assert (hardware["ranks"], hardware["machines"]) == (1, 1)
    assert hardware["device"]
    assert (tmp_path / "earlier/1/checkpoints/latest").is_file()
    assert (tmp_path / "earlier/1/metrics.jsonl").is_file()
    assert (tmp_path / "earlier/1/qwen3/export.json").is_file()
    assert (tmp_path / "mine").is_dir()
    assert json.loads((tmp_path / "earlier/2/run.json").read_text())["identity"] == {"pairs": 1}
    assert (tmp_path / "full_sft_512.pth").is_file()
    assert not (tmp_path / "checkpoints").exists()

    open_run_folder(prepared, {"pairs": 2}, resuming=True, world=WORLD)
    assert not (tmp_path / "earlier/3").exists()


def test_metrics_after_the_checkpoint_and_incomplete_lines_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) for step in (1, 2, 3)]
    path.write_text("\n".join([lines[0], "\0\0\0\0}", *lines[1:], '{"step": 2, "lo']))
    assert drop_metrics_after(tmp_path, 2) == [f"{path}: 1 damaged line removed"]
    assert path.read_text() == "\n".join(lines[:2]) + "\n"


def test_a_ledger_that_cannot_be_written_is_an_error_with_its_folder(tmp_path, monkeypatch):
    def fails(folder, step):
        raise OSError("full")

    monkeypatch.setattr(folder_module, "drop_after", fails)
    with pytest.raises(ConfigError, match="ledger: cannot be written"):
        drop_ledger_after(tmp_path, 2)


@pytest.mark.parametrize("section", ["tensorboard", "csv_monitor"])
def test_folder_of_a_monitor_is_tried_before_the_engine_opens_it(section, tmp_path):
    config = json.loads((REPO / "ds_configs/zero2.json").read_text())
    (tmp_path / "file").touch()
    config[section] = {"enabled": True, "output_path": str(tmp_path / "file"), "job_name": "auto"}
    (tmp_path / "ds.json").write_text(json.dumps(config))
    prepared = prepared_run(tmp_path / "out", tmp_path / "ds.json")
    with pytest.raises(ConfigError, match=f"'{section}' writes into {tmp_path}/file/.*Not a directory.*output_path"):
        open_run_folder(prepared, {}, resuming=False, world=WORLD)


def test_samples_after_the_checkpoint_are_removed(tmp_path):
    lines = [json.dumps({"step": step, "answer": "a\u2028b"}, ensure_ascii=False) for step in (0, 2, 3)]
    # A kill has cut the last line off within a character.
    (tmp_path / "samples.jsonl").write_bytes("\n".join([*lines, '{"step": 1, "answer": "好']).encode()[:-1])
    drop_metrics_after(tmp_path, 2)
    assert (tmp_path / "samples.jsonl").read_text(encoding="utf-8") == "\n".join(lines[:2]) + "\n"

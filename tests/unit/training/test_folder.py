"""The run's folder: earlier records are moved aside, metrics after a checkpoint are removed, other files stay."""

from __future__ import annotations

import json
import resource

import pytest
import torch

from minimind.config import parse_settings
from minimind.ranks.world import World
from minimind.training.folder import append_line, drop_metrics_after, open_run_folder
from minimind.training.setup.prepare import prepare
from tests.conftest import REPO


def test_records_of_an_earlier_run_are_moved_aside(tmp_path):
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    flags = ["--deepspeed", str(REPO / "ds_configs/zero2.json"), "--save_dir", str(tmp_path)]
    prepared = prepare(parse_settings(flags), world)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/latest").write_text("step00000001")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "full_sft_512.pth").write_text("weights")
    for number in (1, 2):
        open_run_folder(prepared, {"pairs": number}, resuming=False)
        assert json.loads((tmp_path / "run.json").read_text())["identity"] == {"pairs": number}
    assert (tmp_path / "earlier/1/checkpoints/latest").is_file()
    assert (tmp_path / "earlier/1/metrics.jsonl").is_file()
    assert json.loads((tmp_path / "earlier/2/run.json").read_text())["identity"] == {"pairs": 1}
    assert (tmp_path / "full_sft_512.pth").is_file()
    assert not (tmp_path / "checkpoints").exists()

    open_run_folder(prepared, {"pairs": 2}, resuming=True)
    assert not (tmp_path / "earlier/3").exists()


def test_metrics_after_the_checkpoint_and_incomplete_lines_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) for step in (1, 2, 3)]
    path.write_text("\n".join([*lines, '{"step": 2, "lo']))
    drop_metrics_after(tmp_path, 2)
    assert path.read_text() == "\n".join(lines[:2]) + "\n"


def test_a_line_is_appended_completely_or_not_at_all(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_line(path, "a")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            append_line(path, "b" * 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    append_line(path, "c")
    assert path.read_text() == "a\nc\n"

"""A sweep by the real launcher: the reference is scored once, a second call goes on, TensorBoard finds the runs."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest

from minimind import demo
from tests.distributed.launching import REPO, environment, free_port

# Two launches by the deepspeed command, of 200 s at most; tests/unit/sweep has the same with a launcher's stand-in.
pytestmark = [pytest.mark.distributed, pytest.mark.long, pytest.mark.timeout(600)]

COUNT = 12


def call(folder, losses):
    flags = {
        "deepspeed": "ds_configs/zero2.json", "data_path": folder / "train.jsonl", "limit": COUNT,
        "from_weight": demo.WEIGHT_PATH, "tokenizer_path": demo.TOKENIZER_PATH, "max_seq_len": 128, "dtype": "float32",
        "learning_rate": 1e-3, "max_steps": 2, "log_interval": 1, "cache_dir": folder / "cache", "loss": losses,
        "save_dir": folder / "sweep", "master_port": free_port(),
    }  # fmt: skip
    arguments = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    done = subprocess.run(
        [sys.executable, "launch/sweep.py", *arguments],
        cwd=REPO,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_sweep_trains_what_is_not_finished(tmp_path):
    (tmp_path / "train.jsonl").write_text(demo.TRAIN_PATH.read_text(encoding="utf-8"), encoding="utf-8")
    status, printed = call(tmp_path, "sigmoid:1;ipo")
    assert status == 0, printed[-6000:]
    # The first run scores the reference, the second one finds it.
    assert f"0 of {COUNT} pairs are in" in printed
    assert f"{COUNT} of {COUNT} pairs are in" in printed
    assert printed.count(f"{COUNT}/{COUNT} pairs scored") == 1
    runs = json.loads((tmp_path / "sweep/sweep.json").read_text())["runs"]
    assert [(run["values"], run["status"], run["step"]) for run in runs] == [
        ({"loss": "sigmoid:1"}, "finished", 2),
        ({"loss": "ipo"}, "finished", 2),
    ]
    rows = list(csv.DictReader((tmp_path / "sweep/sweep.csv").open()))
    assert [float(row["last_loss"]) for row in rows] == [run["metrics"]["loss"] for run in runs]
    assert "of them finished before" not in printed
    status, printed = call(tmp_path, "sigmoid:1;ipo")
    assert (status, "2 of them finished before" in printed, "=== run" in printed) == (0, True, False)
    assert len(list((tmp_path / "sweep").glob("events.out.tfevents.*"))) == 1

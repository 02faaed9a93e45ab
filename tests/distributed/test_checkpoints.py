"""Checkpoints of real runs: damage is named, a full disk fails one save and not the run, only the newest K are kept."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minimind import demo
from minimind.checkpoints.manifest import Manifest, fingerprint_file
from minimind.config import parse_settings
from minimind.ranks.world import World
from minimind.training.setup.prepare import prepare
from minimind.training.setup.space import checkpoint_bytes, weight_bytes
from tests.distributed.launching import REPO, launch, metrics, train

# A test starts several launches, which a busy machine slows down.
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    lines = demo.TRAIN_PATH.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:20]), encoding="utf-8")
    return path


def flags(data, save_dir, *more):
    return [
        *("--data_path", data, "--tokenizer_path", demo.TOKENIZER_PATH, "--from_weight", demo.WEIGHT_PATH),
        *("--max_seq_len", 64, "--batch_size", 2, "--max_steps", 4, "--save_interval", 1, "--log_interval", 1),
        *("--dtype", "float32", "--save_dtype", "float32", "--learning_rate", 1e-3, "--save_dir", save_dir, *more),
    ]


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run of four steps on two ranks under ZeRO-3 that keeps its last two checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    train(*flags(data, folder, "--keep_checkpoints", 2), config="zero3", ranks=2).succeeded()
    return folder


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_only_the_newest_checkpoints_are_kept_without_other_files(run):
    # No recovery scripts either: DeepSpeed copies them where one rank alone could fail.
    assert checkpoints(run) == ["latest", "step00000003", "step00000004"]
    assert (run / "checkpoints/latest").read_text() == "step00000004"
    manifest = json.loads((run / "checkpoints/step00000004/manifest.json").read_text())
    assert manifest["stream"]["pairs"] == 16
    assert set(manifest["files"]) == {p.name for p in (run / "checkpoints/step00000004").glob("*.pt")}
    assert len(manifest["files"]) == 4


@pytest.mark.parametrize("stage", [2, 3])
def test_required_space_is_the_space_used(stage, run, data, tmp_path):
    command = [*map(str, flags(data, tmp_path)), "--deepspeed", str(REPO / f"ds_configs/zero{stage}.json")]
    prepared = prepare(parse_settings(command), World(rank=0, local_rank=0, size=2, device=torch.device("cpu")))
    folder = run if stage == 3 else tmp_path
    if stage == 2:
        train(*flags(data, folder, "--save_interval", 0)).succeeded()
    taken = sum(path.stat().st_size for path in (folder / "checkpoints/step00000004").glob("*.pt"))
    assert checkpoint_bytes(prepared) == pytest.approx(taken, rel=0.03)
    weights = [folder / "dpo_96.pth", *(folder / "dpo_96").glob("*.safetensors")]
    assert weight_bytes(prepared) == pytest.approx(sum(path.stat().st_size for path in weights), rel=0.08)


def test_damaged_checkpoint_is_named_and_the_previous_one_is_used_on_request(run, data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    name = "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    path = folder / "checkpoints/step00000004" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # one bit, in the middle of a tensor
    path.write_bytes(content)
    # The folder of a save that a kill interrupted.
    (folder / "checkpoints/step00000001").mkdir()
    (folder / "checkpoints/step00000001/zero_pp_rank_5_mp_rank_00_optim_states.pt").write_bytes(b"half")

    again = ("--from_resume", 1)
    done = train(*flags(data, folder, *again), config="zero3", ranks=2)
    assert done.status != 0
    assert done.output.count("CheckpointError") == 1
    assert f"step00000004: {name} has changed since it was written (SHA-256 differs)" in done.output
    assert "The newest intact checkpoint is step00000003; --on_bad_checkpoint previous resumes from it." in done.output
    assert "Traceback" not in done.output

    done = train(*flags(data, folder, *again, "--on_bad_checkpoint", "previous"), config="zero3", ranks=2).succeeded()
    assert f"step00000004 is damaged and renamed to step00000004.damaged: {name}" in done.output
    assert "resuming after step 3\n" in done.output
    assert checkpoints(folder) == ["latest", "step00000003", "step00000004", "step00000004.damaged"]
    assert metrics(folder)[-1]["loss"] == metrics(run)[-1]["loss"]
    one, other = (torch.load(at / "dpo_96.pth", weights_only=True) for at in (run, folder))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_file_that_one_rank_cannot_load_is_one_error_on_all_ranks(run, data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    newest, name = folder / "checkpoints/step00000004", "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    # The manifest agrees with the file, but torch cannot read it.
    (newest / name).write_bytes(b"no states")
    manifest = Manifest.read(newest)
    dataclasses.replace(manifest, files={**manifest.files, name: fingerprint_file(newest / name)}).write(newest)
    done = train(*flags(data, folder, "--from_resume", 1), config="zero3", ranks=2)
    assert done.status != 0
    assert done.output.count("CheckpointError") == 1
    assert f"CheckpointError: {newest}: cannot be loaded (" in done.output
    assert "(only on rank 1)" in done.output
    assert "is lost" not in done.output
    assert "Traceback" not in done.output


def test_save_that_fails_on_one_rank_is_skipped_and_training_continues(data, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_OBSTACLE", "rank1")
    monkeypatch.setenv("TEST_OBSTACLE_STEPS", "2")
    script = "tests/distributed/workers/obstacle.py"
    done = launch(script, "--deepspeed", "ds_configs/zero2.json", *flags(data, tmp_path), ranks=2).succeeded()
    assert "NOT SAVED: step 2: " in done.output
    assert "zero_pp_rank_1_mp_rank_00_optim_states.pt: cannot be written" in done.output
    assert "(only on rank 1). The newest complete checkpoint is step00000001. Training continues" in done.output
    assert checkpoints(tmp_path) == ["latest", "step00000001", "step00000003", "step00000004"]
    assert [entry["step"] for entry in metrics(tmp_path, "save_failed")] == [2]
    assert [entry["step"] for entry in metrics(tmp_path)] == [1, 2, 3, 4]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 MiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    command = [mount, "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_full_disk_skips_a_save_and_fails_the_last_one(data, small_disk, monkeypatch):
    monkeypatch.setenv("TEST_OBSTACLE", "disk")
    monkeypatch.setenv("TEST_OBSTACLE_STEPS", "2,4")
    script, folder = "tests/distributed/workers/obstacle.py", small_disk / "run"
    command = ("--deepspeed", "ds_configs/zero2.json", *flags(data, folder, "--keep_checkpoints", 1))
    done = launch(script, *command, ranks=2)
    assert done.status != 0
    assert "Traceback" not in done.output
    assert "NOT SAVED: step 2: " in done.output
    assert "MiB are free there" in done.output
    assert "saved step 3 under" in done.output
    assert done.output.count("CheckpointError: NOT SAVED: step 4: ") == 1
    assert "The newest complete checkpoint is step00000003. Free disk space; then" in done.output
    assert checkpoints(folder) == ["filler", "latest", "step00000003"]
    assert [entry["step"] for entry in metrics(folder)] == [1, 2, 3, 4]

    # Room is made: the lost step is run again.
    (folder / "checkpoints/filler").unlink()
    again = train(*flags(data, folder, "--keep_checkpoints", 1, "--from_resume", 1), ranks=2).succeeded()
    assert "resuming after step 3" in again.output
    assert checkpoints(folder) == ["latest", "step00000004"]

    # And too little room is said before anything is built.
    (folder / "filler").write_bytes(b"x" * 30 * 2**20)
    for path in (folder / "checkpoints", folder / "dpo_96"):
        shutil.rmtree(path)
    refused = train(*flags(data, folder, "--keep_checkpoints", 2))
    assert refused.status != 0
    assert f"ConfigError: --save_dir {folder}: 3 checkpoints and the weights do not fit: 15 MiB per" in refused.output


@pytest.mark.parametrize(
    ("obstacle", "error"),
    [("full", "[Errno 28] No space left on device"), ("moved", "[Errno 2] No such file or directory: ")],
)
def test_metrics_that_cannot_be_written_do_not_stop_training(obstacle, error, data, small_disk, monkeypatch):
    """From step 2 to 13: a short record may still fit into the last block of a file on a full disk."""
    monkeypatch.setenv("TEST_OBSTACLE", obstacle)
    monkeypatch.setenv("TEST_OBSTACLE_STEPS", "2,13")
    more = ("--epochs", 10, "--max_steps", 26, "--save_interval", 0)
    command = ("--deepspeed", "ds_configs/zero2.json", *flags(data, small_disk / "run", *more))
    done = launch("tests/distributed/workers/obstacle.py", *command, ranks=2).succeeded()
    assert "Traceback" not in done.output
    written = [entry["step"] for entry in metrics(small_disk / "run")]
    assert {1, 14, 20, 26} < set(written)
    assert 13 not in written
    for name in ("metrics.jsonl", "TensorBoard"):
        assert done.output.count(f"NOT LOGGED: {name}: {error}") == 1
        assert done.output.count(f"{name} is written again") == 1
    events = EventAccumulator(str(small_disk / "run/tensorboard/run"))
    events.Reload()
    logged = [event.step for event in events.Scalars("train/loss")]
    assert {1, 14, 20, 26} < set(logged)
    assert 13 not in logged


def test_read_only_folder_is_refused_at_start(data, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = train(*flags(data, small_disk / "run"))
    assert done.status != 0
    assert f"ConfigError: --save_dir {small_disk}/run: cannot be written or locked (" in done.output
    assert "Read-only file system" in done.output
    assert "Traceback" not in done.output

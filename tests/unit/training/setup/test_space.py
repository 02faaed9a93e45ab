"""Bytes that a run will write, by hand for 1,000 parameters. tests/distributed compares them with real checkpoints."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from minimind.config import parse_settings
from minimind.errors import ConfigError
from minimind.model.configuration import MiniMindConfig
from minimind.training.setup import space


def prepared(folder, flags="", stage=2, parameters=1000, optimizer="AdamW", device="cpu"):
    settings = parse_settings(["--save_dir", str(folder / "not yet" / "there"), *flags.split()])
    return SimpleNamespace(
        settings=settings,
        adapters=None,
        source=SimpleNamespace(shapes=lambda: {"w": (parameters // 10, 10)}, config=MiniMindConfig()),
        policy_config=SimpleNamespace(
            stage=stage,
            values={
                "optimizer": {"type": optimizer},
                "zero_optimization": {"stage": stage, "offload_optimizer": {"device": device}},
            },
        ),
    )


@pytest.fixture
def free(monkeypatch):
    """Set the number of free bytes."""

    def say(amount):
        monkeypatch.setattr(space.shutil, "disk_usage", lambda path: SimpleNamespace(free=amount))

    return say


@pytest.mark.parametrize(
    ("flags", "stage", "optimizer", "expected"),
    [
        ("--dtype bfloat16", 2, "AdamW", 14_000),  # 2 weights + 4 masters + 8 moments
        ("--dtype float32", 1, "AdamW", 16_000),
        ("--dtype bfloat16", 3, "Adam", 12_000),  # stage 3 writes no 16-bit weights
        ("--dtype float32", 0, "AdamW", 12_000),  # the weights are the only copy
        ("--dtype float32", 0, "Lion", 8_000),
        ("--dtype bfloat16 --reference_update soft:0.5@8", 2, "AdamW", 18_000),  # its float32 average
        ("--dtype bfloat16 --reference_update hard@8", 2, "AdamW", 16_000),
    ],
)
def test_bytes_of_a_checkpoint(tmp_path, flags, stage, optimizer, expected):
    assert space.checkpoint_bytes(prepared(tmp_path, flags, stage, optimizer=optimizer)) == expected


def test_bytes_of_the_weights(tmp_path):
    assert space.weight_bytes(prepared(tmp_path, "--dtype bfloat16 --save_dtype float32")) == 6_000


# In bfloat16 with --save_dtype float16 at stage 2: 14,000 a checkpoint, 2 x 4,000 for the weights and their copy.
@pytest.mark.parametrize(
    ("flags", "needed"),
    [
        ("", 22_000),
        ("--keep_checkpoints 1", 36_000),  # the kept one and the new one
        ("--keep_checkpoints 3", 64_000),
        ("--keep_checkpoints 9", 64_000),  # at most the 4 that are written in 40 steps
        ("--keep_checkpoints 1 --save_interval 0", 22_000),  # only the last one is written
    ],
)
def test_files_that_do_not_fit_are_refused_at_the_start(tmp_path, free, flags, needed):
    run = prepared(tmp_path, f"--save_interval 10 {flags}")
    free(needed - 1)
    with pytest.raises(ConfigError, match=r"do not fit: .* per checkpoint"):
        space.check_space(run, 0, 40)
    free(needed)
    space.check_space(run, 0, 40)


def test_checkpoints_that_will_not_all_fit_are_a_warning(tmp_path, free):
    run = prepared(tmp_path, "--save_interval 10")
    free(4 * 14_000 + 8_000)
    assert space.check_space(run, 0, 40) == ""
    free(4 * 14_000 + 7_999)
    assert "NOT ALL CHECKPOINTS WILL FIT: 4 will be written" in space.check_space(run, 0, 40)
    # 35 steps give one more checkpoint than 30; a resumed run writes fewer.
    assert "4 will be" in space.check_space(run, 0, 35)
    assert space.check_space(run, 10, 40) == ""


def test_existing_files_count_when_a_run_resumes(tmp_path, free):
    run = prepared(tmp_path, "--save_interval 10 --keep_checkpoints 2")
    folder = tmp_path / "not yet" / "there"
    for step in (10, 20):
        (folder / f"checkpoints/step{step:08d}").mkdir(parents=True)
        (folder / f"checkpoints/step{step:08d}/manifest.json").touch()
    free(22_000)
    assert space.check_space(run, 20, 40) == ""
    free(21_999)
    with pytest.raises(ConfigError):
        space.check_space(run, 20, 40)
    # Existing weights take their space already; only their copy is new.
    (folder / "dpo_512").mkdir()
    (folder / "dpo_512.pth").touch()
    free(18_000)
    assert space.check_space(run, 20, 40) == ""
    free(17_999)
    with pytest.raises(ConfigError, match=r"1 checkpoint and the weights do not fit: .* a copy of the weights"):
        space.check_space(run, 20, 40)
    # A fresh run moves existing files aside and keeps them.
    free(64_000 - 14_000 - 1)
    with pytest.raises(ConfigError, match="the weights and their copy"):
        space.check_space(run, 0, 40)


def test_states_on_nvme_are_not_saved_and_need_no_space(tmp_path, free):
    run = prepared(tmp_path, "--save_interval 10", stage=3, device="nvme")
    free(8_000)
    assert space.check_space(run, 0, 40) == ""
    free(7_999)
    with pytest.raises(ConfigError, match=r"there: the weights do not fit: 0 MiB for the weights and their c"):
        space.check_space(run, 0, 40)

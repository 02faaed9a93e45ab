"""Training on one GPU: MiniMind's own steps, every ZeRO stage, the reference shard, resuming, no waits of the host."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch

from minimind import demo
from minimind.model import varlen_attention
from tests.gpu.support import DEVICE, figure, logged, needs_gpu, run_script, train

pytestmark = [*needs_gpu, pytest.mark.timeout(600)]

STEPS = 6
DEMO = {"max_steps": STEPS, "log_interval": 1, "eval_interval": 0}


@pytest.fixture(scope="module")
def zero2(tmp_path_factory):
    """Logged steps of the demo under ZeRO-2 with a live reference."""
    folder = tmp_path_factory.mktemp("zero2")
    train("zero2", save_dir=folder, **DEMO)
    return logged(folder)


def assert_same_steps(one, other, tolerance: float) -> None:
    """Losses and norms of two runs in bfloat16, whose kernels may add in another order."""
    assert [entry["step"] for entry in one] == [entry["step"] for entry in other]
    for mine, theirs in zip(one, other, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=tolerance)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=10 * tolerance)


def test_the_demo_learns_under_zero2(zero2):
    assert zero2[0]["loss"] == pytest.approx(math.log(2), abs=1e-2)
    assert zero2[-1]["loss"] < zero2[0]["loss"]
    assert zero2[-1]["rewards/margins"] > 0
    figure(f"{zero2[-1]['pairs_per_second']:.0f} pairs/s of the demo, {zero2[-1]['peak_memory_gib']:.2f} GiB")


@pytest.mark.parametrize("stage", ["zero1", "zero3"])
def test_other_stages_take_the_same_steps(stage, zero2, tmp_path):
    train(stage, save_dir=tmp_path, **DEMO)
    assert_same_steps(logged(tmp_path), zero2, tolerance=1e-2)


def test_the_reference_shard_gives_live_what_it_has_cached(zero2, tmp_path):
    train("zero2", save_dir=tmp_path / "run", reference="cached", cache_dir=tmp_path / "cache", **DEMO)
    assert_same_steps(logged(tmp_path / "run"), zero2, tolerance=1e-2)


@pytest.mark.parametrize("stage", ["zero0", "zero2", "zero3"])
def test_float32_takes_minimind_s_steps(stage, shared, tmp_path):
    golden = json.loads((shared / "golden/trajectory_minimind2_dense.json").read_text())
    lines = (shared / "data" / golden["data"]).read_text(encoding="utf-8").splitlines(keepends=True)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(lines[golden["first_row"] :][: golden["rows"]]), encoding="utf-8")
    same = ("max_seq_len", "batch_size", "learning_rate", "grad_clip", "beta")
    train(
        stage,
        data_path=rows,
        tokenizer_path=shared / "tokenizers/minimind2",
        from_weight=shared / "golden/trajectory_minimind2_dense_start.pth",
        **{name: golden[name] for name in same},
        dtype="float32",
        shuffle=0,
        on_bad_row="keep",
        log_interval=1,
        save_dir=tmp_path / "run",
    )
    steps = logged(tmp_path / "run")
    assert len(steps) == len(golden["steps"])
    for entry, step in zip(steps, golden["steps"], strict=True):
        assert entry["dpo_loss"] == pytest.approx(step["dpo_loss"], rel=1e-3)
        assert entry["rewards/margins"] == pytest.approx(step["rewards_margin"], abs=1e-4)
    errors = [abs(e["dpo_loss"] / s["dpo_loss"] - 1) for e, s in zip(steps, golden["steps"], strict=True)]
    figure(f"{stage} loss {max(errors):.0e} from MiniMind's loop")


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_a_resumed_run_takes_the_steps_of_the_uninterrupted_one(stage, tmp_path):
    flags = {
        "max_steps": STEPS,
        "log_interval": 1,
        "dtype": "float32",
        "save_interval": 2,
        "keep_checkpoints": 9,
        "data_path": demo.TRAIN_PATH,
    }
    flags |= {"tokenizer_path": demo.TOKENIZER_PATH, "from_weight": demo.WEIGHT_PATH, "learning_rate": 3e-4}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(stage, save_dir=whole, **flags)
    # As if killed after step 2.
    shutil.copytree(whole, resumed)
    for tag in ("step00000004", "step00000006"):
        shutil.rmtree(resumed / "checkpoints" / tag)
    (resumed / "checkpoints/latest").write_text("step00000002")
    assert "resuming after step 2" in train(stage, save_dir=resumed, from_resume=1, **flags)
    one, other = logged(whole), logged(resumed)
    assert [entry["step"] for entry in other] == list(range(1, STEPS + 1))
    errors = [abs(a["loss"] - b["loss"]) for a, b in zip(one, other, strict=True)]
    assert max(errors) <= 1e-5
    figure(f"{stage} " + ("bit for bit" if max(errors) == 0 else f"{max(errors):.0e} apart"))


@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
def test_the_host_waits_only_in_deepspeed_s_step(attention):
    if attention == "varlen" and (why := varlen_attention.obstacle(DEVICE, torch.bfloat16)):
        pytest.skip(why)
    run_script("-m", "tests.gpu.waits", attention)

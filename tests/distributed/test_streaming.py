"""A run that streams takes the steps of one that tokenises everything first, on any ranks, and after kills."""

from __future__ import annotations

import json
import shutil

import pytest

from minimind import demo
from tests.distributed.launching import launch, metrics

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

EXACT = ("step", "loss", "grad_norm", "learning_rate", "token_accuracy")
# Shards are kept for eight steps after their use: so many rows that some are removed however fast they are made.
STEPS, EVERY, SAVED, KILLED = 32, 8, 16, 17


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("streaming") / "texts.jsonl"
    lines = demo.TRAIN_PATH.read_text(encoding="utf-8").splitlines()
    texts = [message["content"] for line in lines for message in json.loads(line)["chosen"]]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def pretrain(data, folder, *more, ranks, config="zero1", **options):
    return launch(
        *("launch/pretrain.py", "--deepspeed", f"ds_configs/{config}.json", "--data_path", data, "--max_seq_len", 24),
        *("--hidden_size", 32, "--num_hidden_layers", 1, "--dtype", "float32", "--learning_rate", 1e-3),
        *(
            "--max_steps",
            STEPS,
            "--save_interval",
            EVERY,
            "--log_interval",
            1,
            "--num_workers",
            0,
            "--save_dir",
            folder,
            *more,
        ),
        ranks=ranks,
        **options,
    )


def curve(folder):
    return [[entry[name] for name in EXACT] for entry in metrics(folder)]


# Chunks of 256 rows make shards, and windows of two of them.
STREAM = ("--streaming", 1, "--shard_tokens", 1500, "--window_tokens", 4000)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """An uninterrupted run on two ranks that tokenises in a process beside it, and keeps two windows on the disk."""
    folder = tmp_path_factory.mktemp("whole")
    split = ("--batch_size", 20, "--accumulation_steps", 2, "--keep_windows", 2, "--cache_dir", folder / "cache")
    done = pretrain(data, folder, *STREAM, *split, ranks=2).succeeded()
    assert f"{STEPS} steps of 80 texts, streamed" in done.output
    return folder


def killed(whole, at):
    """The whole run's folder as if it had been killed after a step behind that of its newest checkpoint."""
    shutil.copytree(whole, at)
    for step in range(SAVED + EVERY, STEPS + 1, EVERY):
        shutil.rmtree(at / "checkpoints" / f"step{step:08d}")
    (at / "checkpoints/latest").write_text(f"step{SAVED:08d}")
    lines = (at / "metrics.jsonl").read_text().splitlines(keepends=True)
    (at / "metrics.jsonl").write_text("".join(lines[:KILLED]))
    return at


def test_a_killed_run_goes_on_with_fewer_ranks_and_shards_that_are_made_again(data, whole, tmp_path):
    (store,) = (whole / "cache").glob("stream-*")
    kept = {path.name for path in store.glob("shard-*")}
    assert "shard-000000" not in kept, "shards that are used up are still there"
    assert len(kept) < (store / "shards.jsonl").read_text().count("first")
    # The list got no further than the middle of a line, and the shards are lost.
    resumed = killed(whole, tmp_path / "resumed")
    listed = resumed / "cache" / store.name / "shards.jsonl"
    lines = listed.read_text().splitlines(keepends=True)
    listed.write_text("".join(lines[:3]) + lines[3][:9])
    for path in listed.parent.glob("shard-*"):
        shutil.rmtree(path)
    done = pretrain(data, resumed, *STREAM, "--from_resume", 1, "--cache_dir", resumed / "cache", ranks=1).succeeded()
    assert f"resuming after step {SAVED}, resharded: 2 ranks, ZeRO-1 -> 1 ranks, ZeRO-1" in done.output
    assert len(curve(resumed)) == STEPS
    for now, was in zip(curve(resumed), curve(whole), strict=True):
        assert now == pytest.approx(was, rel=1e-4)


def test_a_resumed_run_has_the_same_numbers_to_the_last_bit(data, whole, tmp_path):
    resumed = killed(whole, tmp_path / "resumed")
    shutil.rmtree(resumed / "cache")
    pretrain(data, resumed, *STREAM, "--from_resume", 1, ranks=2).succeeded()
    assert curve(resumed) == curve(whole)


@pytest.mark.long
def test_the_order_of_the_file_gives_the_steps_of_a_table(data, tmp_path):
    plain = ("--shuffle", 0, "--batch_size", 100, "--accumulation_steps", 2, "--max_steps", 3)
    pretrain(data, tmp_path / "table", *plain, ranks=1).succeeded()
    pretrain(data, tmp_path / "stream", *plain, *STREAM, ranks=1).succeeded()
    assert curve(tmp_path / "stream") == curve(tmp_path / "table")

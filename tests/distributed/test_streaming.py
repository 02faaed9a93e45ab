"""A run that streams takes the steps of one that tokenises everything first, on any ranks, and after kills."""

from __future__ import annotations

import json
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from minimind import demo
from tests.distributed.launching import launch, metrics

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

EXACT = ("step", "loss", "grad_norm", "learning_rate", "token_accuracy")
# Shards are kept for eight steps after their use: so many rows that some are removed however fast they are made.
STEPS, SAVED, KILLED = 32, 16, 18


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("streaming") / "texts.jsonl"
    lines = demo.TRAIN_PATH.read_text(encoding="utf-8").splitlines()
    texts = [message["content"] for line in lines for message in json.loads(line)["chosen"]]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def pretrain(data, folder, *more, ranks, **options):
    return launch(
        *("launch/pretrain.py", "--deepspeed", "ds_configs/zero1.json", "--data_path", data, "--max_seq_len", 24),
        *("--hidden_size", 32, "--num_hidden_layers", 1, "--dtype", "float32", "--learning_rate", 1e-3),
        *("--max_steps", STEPS, "--save_interval", SAVED, "--log_interval", 1, "--num_workers", 0),
        *("--save_dir", folder, *more),
        ranks=ranks,
        **options,
    )


def curve(folder):
    return [[entry[name] for name in EXACT] for entry in metrics(folder)]


# Chunks of 256 rows make shards, and windows of two of them.
STREAM = ("--streaming", 1, "--shard_tokens", 1500, "--window_tokens", 4000)
BATCH = ("--batch_size", 20, "--accumulation_steps", 2)
# A process beside the run tokenises, and waits while two windows are on the disk.
BOUNDED = (*STREAM, "--keep_windows", 2)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """An uninterrupted run on two ranks, for which all shards are made before it starts and none is removed."""
    folder = tmp_path_factory.mktemp("whole")
    done = pretrain(data, folder, *STREAM, *BATCH, "--cache_dir", folder / "cache", ranks=2).succeeded()
    assert f"{STEPS} steps of 80 texts, streamed" in done.output
    return folder


@pytest.fixture(scope="module")
def died(data, tmp_path_factory):
    """A run that loses all its ranks and the process that tokenises at once, in the middle of streaming; and a copy."""
    folder, copy = (tmp_path_factory.mktemp(name) for name in ("died", "copy"))
    killed(data, folder, KILLED, all_at_once=True)
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    return folder, copy


def killed(data, folder, step, *more, all_at_once):
    """A run that ends by SIGKILL after a step: of all its ranks, or of the first, the parent of what tokenises."""
    flags = (*BOUNDED, *BATCH, "--cache_dir", folder / "cache", *more)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(pretrain, data, folder, *flags, ranks=2)
        while not running.done() and logged(folder) < step:
            time.sleep(0.01)
        assert not running.done(), running.result().output[-6000:]
        (store,) = (folder / "cache").glob("stream-*")
        first = psutil.Process(holder_of(folder / ".lock"))
        assert holder_of(store / "lock") != first.pid
        # The server that forks ranks has no other children. What a killed rank leaves running it kills too.
        ranks = first.parent().children() if all_at_once else [first]
        for rank in ranks:
            rank.suspend()
        for rank in ranks:
            rank.kill()
        assert len(ranks) == 1 + all_at_once
        assert running.result().status == -signal.SIGKILL
    assert step <= logged(folder) < STEPS


def logged(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count('"loss": ') if path.is_file() else 0


def holder_of(lock):
    return json.loads(lock.read_text())["pid"]


def test_a_run_whose_ranks_were_killed_goes_on_with_the_same_numbers_to_the_last_bit(data, whole, died):
    folder, _ = died
    flags = (*BOUNDED, *BATCH, "--cache_dir", folder / "cache", "--from_resume", 1)
    done = pretrain(data, folder, *flags, ranks=2).succeeded()
    assert f"resuming after step {SAVED}" in done.output
    assert curve(folder) == curve(whole)
    (store,) = (folder / "cache").glob("stream-*")
    kept = {path.name for path in store.glob("shard-*")}
    assert "shard-000000" not in kept, "shards that are used up are still there"
    assert len(kept) < (store / "shards.jsonl").read_text().count("first")


def test_a_killed_run_goes_on_with_fewer_ranks_and_shards_that_are_made_again(data, whole, died):
    _, folder = died
    (store,) = (folder / "cache").glob("stream-*")
    # A run that keeps all shards has them under a name without the run's. The list got no further than the middle of a
    # line, and the shards are lost.
    store = store.rename(store.with_name(store.name.rpartition("-")[0]))
    lines = (store / "shards.jsonl").read_text().splitlines(keepends=True)
    (store / "shards.jsonl").write_text("".join(lines[:3]) + lines[3][:9])
    for path in store.glob("shard-*"):
        shutil.rmtree(path)
    done = pretrain(data, folder, *STREAM, "--from_resume", 1, "--cache_dir", folder / "cache", ranks=1).succeeded()
    assert f"resuming after step {SAVED}, resharded: 2 ranks, ZeRO-1 -> 1 ranks, ZeRO-1" in done.output
    assert (store / "shards.jsonl").read_text().startswith("".join(lines))
    assert len(curve(folder)) == STEPS
    for now, was in zip(curve(folder), curve(whole), strict=True):
        assert now == pytest.approx(was, rel=1e-4)


def test_two_machines_that_share_a_folder_of_shards_take_the_same_steps(data, whole, tmp_path):
    """Each has a process that tokenises; one of them makes and removes shards, the other waits for its lock."""
    flags = (*BOUNDED, *BATCH, "--cache_dir", tmp_path / "cache")
    pretrain(data, tmp_path, *flags, ranks=2, machines=2).succeeded()
    assert curve(tmp_path) == curve(whole)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_again_and_again_goes_on_with_the_same_numbers(data, whole, tmp_path):
    """Before its first checkpoint, behind it, and when only the rank dies whose child tokenises."""
    more = ("--save_interval", 8, "--from_resume", 1)
    for step, all_at_once in ((2, True), (10, False), (KILLED, True)):
        killed(data, tmp_path, step, *more, all_at_once=all_at_once)
    flags = (*BOUNDED, *BATCH, "--cache_dir", tmp_path / "cache", *more)
    done = pretrain(data, tmp_path, *flags, ranks=2).succeeded()
    assert "resuming after step 16" in done.output
    assert curve(tmp_path) == curve(whole)


@pytest.mark.long
def test_the_order_of_the_file_gives_the_steps_of_a_table(data, tmp_path):
    """Of so much data that a process makes the shards while the run trains."""
    large = tmp_path / "large.jsonl"
    large.write_text(data.read_text(encoding="utf-8") * -(-5 * 2**20 // data.stat().st_size), encoding="utf-8")
    plain = ("--shuffle", 0, "--batch_size", 100, "--accumulation_steps", 2, "--max_steps", 20, "--save_interval", 0)
    pretrain(large, tmp_path / "table", *plain, ranks=1).succeeded()
    shards = ("--streaming", 1, "--shard_tokens", 20000, "--window_tokens", 40000)
    done = pretrain(large, tmp_path / "stream", *plain, *shards, ranks=1).succeeded()
    assert "tokenising ahead in shards of 20,000 tokens" in done.output
    assert curve(tmp_path / "stream") == curve(tmp_path / "table")

"""`--reference cached` in real runs: the live run's metrics, also with other ranks, resumed, killed or with a wrong
cache; and gradients under a token budget."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from minimind import demo
from minimind.engine.reference_records import RECORD, read_records, seal_records
from tests.distributed.launching import launch, metrics, train

# A test takes two launches at most, of 200 s at most; one of them may be the first one's fixture.
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

COUNT = 26
EXACT = ("loss", "grad_norm", "rewards/margins", "logps/chosen", "logps/rejected")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs to train on, and held-out ones."""
    path = tmp_path_factory.mktemp("cached")
    for name, source, count in (("train", demo.TRAIN_PATH, COUNT), ("eval", demo.EVAL_PATH, 7)):
        lines = source.read_text(encoding="utf-8").splitlines(keepends=True)[:count]
        (path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return path


def run(folder: Path, save_dir: str, *more: object, dtype: str = "float32", config: str = "zero3", ranks: int = 2):
    flags = {
        "data_path": folder / "train.jsonl",
        "eval_data_path": folder / "eval.jsonl",
        "cache_dir": folder / "cache",
        "tokenizer_path": demo.TOKENIZER_PATH,
        "from_weight": demo.WEIGHT_PATH,
        "max_seq_len": 128,
        "dtype": dtype,
        "save_dtype": "float32",
        "learning_rate": 1e-3,
        "batch_size": 4 // ranks,
        "accumulation_steps": 2,
        "save_interval": 1,
        "log_interval": 1,
        "save_dir": folder / save_dir,
    }
    arguments = [part for name, value in flags.items() for part in (f"--{name}", value)]
    return train(*arguments, *more, config=config, ranks=ranks)


def rows_files(folder: Path) -> dict[int, Path]:
    """Every cache of the folder by its number of records."""
    return {path.stat().st_size // RECORD.itemsize: path for path in (folder / "cache").glob("reference-*/rows.bin")}


def assert_same_metrics(one: Path, other: Path, atol: float) -> None:
    for name in ("loss", "eval/loss"):
        ours, theirs = metrics(one, name), metrics(other, name)
        assert [entry["step"] for entry in ours] == [entry["step"] for entry in theirs]
        assert len(ours) >= 2
        for mine, its in zip(ours, theirs, strict=True):
            prefix = name.removesuffix("loss")
            for key in (name, f"{prefix}rewards/margins", f"{prefix}logps/chosen", f"{prefix}logps/rejected"):
                assert mine[key] == pytest.approx(its[key], abs=atol), key


@pytest.fixture(scope="module")
def cached(folder):
    """A first cached run, under ZeRO-3 on two ranks: what it printed."""
    return run(folder, "cached", "--reference", "cached").succeeded().output


def test_cached_run_has_the_metrics_of_the_live_run(folder, cached):
    assert "ZeRO-3 policy, cached reference" in cached
    assert f"reference of train.jsonl: 0 of {COUNT} pairs" in cached
    assert f"{COUNT}/{COUNT} pairs scored" in cached
    assert "reference of eval.jsonl: 0 of 7 pairs" in cached
    assert sorted(rows_files(folder)) == [7, COUNT]
    run(folder, "live").succeeded()
    assert_same_metrics(folder / "cached", folder / "live", atol=1e-6)
    end, other = (torch.load(folder / name / "dpo_96.pth", weights_only=True) for name in ("cached", "live"))
    # Adam makes steps of gradients however small; hence not 1e-6.
    assert all((end[name] - other[name]).norm() / end[name].norm() < 1e-4 for name in end)


def test_resumed_cached_run_has_the_metrics_of_the_uninterrupted_run(folder, cached):
    shutil.copytree(folder / "cached", folder / "resumed")
    steps = sorted(path.name for path in (folder / "resumed/checkpoints").glob("step*"))
    for tag in steps[1:]:
        shutil.rmtree(folder / "resumed/checkpoints" / tag)
    (folder / "resumed/checkpoints/latest").write_text(steps[0])
    done = run(folder, "resumed", "--reference", "cached", "--from_resume", 1).succeeded()
    assert "resuming after step 1" in done.output
    assert f"reference of train.jsonl: {COUNT} of {COUNT} pairs" in done.output
    assert "scored" not in done.output
    one, other = metrics(folder / "cached"), metrics(folder / "resumed")
    assert len(one) == len(steps) == 3
    assert [[e[name] for name in EXACT] for e in one] == [[e[name] for name in EXACT] for e in other]


def test_cache_of_a_killed_run_is_used_with_other_ranks_stages_and_settings(folder, cached):
    """A killed run leaves a part file: some records, the last one incomplete."""
    path = rows_files(folder)[COUNT]
    whole = path.read_bytes()
    path.with_name("part-killed.bin").write_bytes(whole[: 12 * RECORD.itemsize + 5])
    path.unlink()
    other = ("--reference", "cached", "--beta", 0.5, "--average_log_prob", 0, "--seed", 7, "--learning_rate", 1e-4)
    done = run(folder, "other", *other, "--micro_batch_tokens", 200, config="zero2", ranks=1).succeeded()
    assert f"reference of train.jsonl: 12 of {COUNT} pairs" in done.output
    assert "reference of eval.jsonl: 7 of 7 pairs" in done.output
    key = path.parent.name.removeprefix("reference-")
    before, after = np.frombuffer(whole, RECORD), read_records(path, key)
    assert [entry.name for entry in sorted(path.parent.iterdir())] == ["about.json", "rows.bin"]
    np.testing.assert_array_equal(before["pair"], after["pair"])
    np.testing.assert_array_equal(before["counts"], after["counts"])
    np.testing.assert_allclose(before["sums"], after["sums"], rtol=1e-5)
    # The run itself is right: its loss starts at ln 2 with sums as with means.
    assert metrics(folder / "other")[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    path.write_bytes(whole)


def test_wrong_cached_log_prob_is_an_error_that_names_the_row(folder, cached):
    path = rows_files(folder)[COUNT]
    whole, key = path.read_bytes(), path.parent.name.removeprefix("reference-")
    records = read_records(path, key)
    sums = records["sums"].copy()
    sums[0, 1] += 0.01
    path.write_bytes(seal_records(records["pair"], sums, records["counts"], key).tobytes())
    done = run(folder, "wrong", "--reference", "cached", "--max_steps", 1)
    path.write_bytes(whole)
    assert done.status != 0
    assert done.output.count("TrainingError") == 1
    place = f"{folder / 'train.jsonl'}, line {records['pair'][0] + 1}"
    assert f"{path.parent}: the cached reference log-probs of {place} differ by " in done.output
    assert "Delete the folder" in done.output
    path = folder / "wrong/metrics.jsonl"
    assert not path.exists() or not metrics(folder / "wrong")


def test_cached_run_in_bf16_has_the_metrics_of_the_live_run_up_to_rounding(folder):
    run(folder, "cached16", "--reference", "cached", dtype="bfloat16", config="zero2", ranks=1).succeeded()
    run(folder, "live16", dtype="bfloat16", config="zero2", ranks=1).succeeded()
    assert_same_metrics(folder / "cached16", folder / "live16", atol=1e-2)


def test_gradients_under_a_token_budget_are_those_of_the_global_batch():
    done = launch("tests/distributed/workers/budget.py", ranks=2).succeeded()
    # Two steps of stage 0 in float32, and of stages 1 to 3 in both precisions.
    assert done.output.count("gradient off by") == 14

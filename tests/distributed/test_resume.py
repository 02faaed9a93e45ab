"""A resumed run has the metrics and weights of the uninterrupted run: in float32, bit for bit."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minimind import demo
from minimind.diagnosis import ledger
from tests.distributed.launching import metrics, train

pytestmark = pytest.mark.distributed

# Stands for the file of held-out pairs, the first of the demo's.
EVAL, EVAL_PAIRS = "EVAL", 16
EXACT = ("loss", "grad_norm", "learning_rate", "rewards/margins", "logps/chosen", "logps/rejected")


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    path = tmp_path_factory.mktemp("resume") / "pairs.jsonl"
    lines = demo.TRAIN_PATH.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:26]), encoding="utf-8")
    return path


def flags(data, save_dir, *more, ranks=2):
    return [
        *("--data_path", data, "--tokenizer_path", demo.TOKENIZER_PATH, "--from_weight", demo.WEIGHT_PATH),
        *("--dtype", "float32", "--save_dtype", "float32", "--learning_rate", 1e-3, "--epochs", 2),
        # 52 pairs in global batches of 4 pairs x 2 micro-batches: 6 steps, 4 pairs left over, an epoch ends within
        # step 4. Steps 1, 3 and 6 are logged, 2, 4 and 6 saved.
        *("--batch_size", 4 // ranks, "--accumulation_steps", 2, "--save_interval", 2, "--log_interval", 3),
        *("--save_dir", save_dir, "--run_name", "same"),
        *more,
    ]


needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="the package bitsandbytes is not installed"
)


# Compiling takes each rank half a minute.
@pytest.mark.parametrize(
    ("config", "ranks", "more"),
    [
        ("zero2", 2, ()),
        # The best weights and the ledger of a run that has them go on.
        (
            "zero3",
            2,
            ("--eval_data_path", EVAL, "--eval_interval", 2, "--save_best", "eval/loss", "--ledger", 1),
        ),
        # Running means and a loss of the global batch.
        ("zero3", 2, ("--loss", "sigmoid:0.8,bco_pair:0.2,sft:1,beta_dpo:0.5,aot:0.1")),
        # A momentum of whole matrices, which the ranks' partitions cut; torch compiles it, too.
        pytest.param("zero2", 2, ("--optimizer", "muon"), marks=pytest.mark.long),
        # Moments of 8 bits in blocks of the ranks' flat partitions.
        pytest.param("zero3", 2, ("--optimizer", "adamw_8bit"), marks=[pytest.mark.long, needs_bitsandbytes]),
        *(pytest.param("zero2", ranks, ("--use_compile", 1), marks=pytest.mark.long) for ranks in (1, 2)),
    ],
)
def test_resume_is_bit_exact(config, ranks, more, small_data, tmp_path):
    whole, resumed, held_out = tmp_path / "whole", tmp_path / "resumed", tmp_path / "eval.jsonl"
    lines = demo.EVAL_PATH.read_text(encoding="utf-8").splitlines(keepends=True)
    held_out.write_text("".join(lines[:EVAL_PAIRS]), encoding="utf-8")
    more = [held_out if word == EVAL else word for word in more]
    done = train(*flags(small_data, whole, *more, ranks=ranks), config=config, ranks=ranks, timeout=280).succeeded()
    assert "the last 4 pairs do not fill a global batch" in done.output

    # As if it had been killed after step 3: the newest checkpoint is that of step 2, step 3, with what the metrics of
    # step 2 were, is logged already.
    shutil.copytree(whole, resumed)
    for tag in ("step00000004", "step00000006"):
        shutil.rmtree(resumed / "checkpoints" / tag)
    (resumed / "checkpoints/latest").write_text("step00000002")
    logged = (resumed / "metrics.jsonl").read_text().splitlines(keepends=True)
    (resumed / "metrics.jsonl").write_text("".join(logged[:2]))
    for path in (resumed / "dpo_96.pth", resumed / "dpo_96"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    best = resumed / "best/best.json"
    if best.is_file():
        # Of a step after the checkpoint: the resumed run finds it again.
        best.write_text("{}")

    again = flags(small_data, resumed, "--from_resume", 1, *more, ranks=ranks)
    done = train(*again, config=config, ranks=ranks, timeout=280).succeeded()
    assert "resuming after step 2\n" in done.output  # and nothing is resharded
    one, other = metrics(whole), metrics(resumed)
    assert [entry["step"] for entry in other] == [1, 3, 6]
    assert [[e[name] for name in EXACT] for e in one] == [[e[name] for name in EXACT] for e in other]
    events = EventAccumulator(str(resumed / "tensorboard/same"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 3, 6]
    assert len(events.Tensors("settings/text_summary")) == 1
    (weights,) = whole.glob("dpo_*.pth")
    end, other = (torch.load(folder / weights.name, weights_only=True) for folder in (whole, resumed))
    assert all(torch.equal(end[name], other[name]) for name in end)
    if best.is_file():
        assert json.loads(best.read_text()) == json.loads((whole / "best/best.json").read_text())
    if "--ledger" in more:
        assert_equal_ledgers(whole, resumed)


def assert_equal_ledgers(one: Path, other: Path) -> None:
    """Each pair was met twice in training and at all four evaluations, in both runs with the same values."""
    ledgers = [ledger.read(folder).ordered() for folder in (one, other)]
    trained, evaluated = (ledgers[0].of_set(name) for name in (ledger.TRAIN, ledger.EVAL))
    assert np.bincount(trained.step).tolist() == [0, *[8] * 6]
    assert np.unique(evaluated.step, return_counts=True)[1].tolist() == [EVAL_PAIRS] * 4
    assert ledgers[0].sets == ledgers[1].sets
    for name in ("step", "set", "source", "line", "pair"):
        np.testing.assert_array_equal(*(getattr(one, name) for one in ledgers))
    for name in ledger.VALUES:
        np.testing.assert_array_equal(*(one.values[name] for one in ledgers))


def test_run_with_other_settings_is_not_resumed_and_no_file_is_lost(small_data, tmp_path):
    first = train(*flags(small_data, tmp_path, "--max_steps", 2)).succeeded()
    assert "ends after 2 of them (--max_steps)" in first.output

    other = train(*flags(small_data, tmp_path, "--max_steps", 2, "--from_resume", 1, "--beta", 0.5))
    assert other.status != 0
    assert "CheckpointError" in other.output
    assert "beta was 0.15, is 0.5" in other.output
    assert "another --save_dir" in other.output

    # Died between its last checkpoint and its weights: they are written now.
    (tmp_path / "dpo_96.pth").unlink()
    train(*flags(small_data, tmp_path, "--max_steps", 2, "--from_resume", 1)).succeeded()
    assert (tmp_path / "dpo_96.pth").is_file()

    # The newest checkpoint is named but damaged.
    (states,) = (tmp_path / "checkpoints/step00000002").glob("mp_rank_00_model_states.pt")
    whole = states.read_bytes()
    states.write_bytes(whole[: len(whole) // 2])
    torn = train(*flags(small_data, tmp_path, "--max_steps", 2, "--from_resume", 1))
    assert torn.status != 0
    assert "CheckpointError" in torn.output
    assert "step00000002: mp_rank_00_model_states.pt has" in torn.output
    assert "No checkpoint is intact" in torn.output
    assert "Traceback" not in torn.output

    # A fresh run in the same folder puts the earlier one aside.
    train(*flags(small_data, tmp_path, "--max_steps", 1)).succeeded()
    assert len(metrics(tmp_path)) == 1
    assert len(metrics(tmp_path / "earlier/1")) == 2
    assert (tmp_path / "earlier/1/checkpoints/latest").is_file()
    assert (tmp_path / "earlier/1/dpo_96.pth").is_file()


def test_resume_without_a_checkpoint_starts_at_step_0_with_a_message(small_data, tmp_path):
    done = train(*flags(small_data, tmp_path, "--max_steps", 1, "--from_resume", 1)).succeeded()
    assert "no checkpoint in" in done.output

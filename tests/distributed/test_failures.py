"""Failed runs: the exit status is not 0, and the error is printed once, without a traceback if it is the user's."""

from __future__ import annotations

import json
import re

import pytest
import torch

from minimind import demo
from minimind.ranks.exits import CRASHED
from tests.distributed.launching import launch, train

pytestmark = pytest.mark.distributed

DEMO_DATA = ("--tokenizer_path", demo.TOKENIZER_PATH, "--from_weight", demo.WEIGHT_PATH)


def test_user_error_ends_every_rank_and_is_printed_once(write_rows, tmp_path):
    data = write_rows('{"chosen": [')
    done = train("--data_path", data, *DEMO_DATA, "--save_dir", tmp_path / "out", ranks=2)
    assert done.status != 0
    assert done.output.count("DataError") == 1
    assert "line 1: invalid JSON" in done.output
    assert "Traceback" not in done.output


def test_error_on_one_rank_alone_ends_the_launch(tmp_path):
    done = launch("tests/distributed/workers/failing.py", "user_error", ranks=2)
    assert done.status != 0
    assert "DataError: rank 1 has no file (only on rank 1)" in done.output


def test_error_that_is_not_the_users_ends_a_rank_at_once_with_its_traceback():
    done = launch("tests/distributed/workers/failing.py", "crash", ranks=2)
    assert done.status == CRASHED
    assert done.output.count("On rank 1:\nTraceback") == 1
    error = "ZeroDivisionError: integer division or modulo by zero"
    assert f"\n{error}\n" in done.output
    assert re.search(rf"LaunchError: rank 1 \(process \d+ on .*\) is lost: {error}\.", done.output), done.output


def test_different_devices_are_an_error_before_the_process_group_is_made():
    done = launch("tests/distributed/workers/failing.py", "other_device", ranks=2)
    assert done.status != 0
    assert done.output.count("LaunchError") == 1
    assert "different devices: cpu on rank 0; cuda on rank 1" in done.output
    assert "Traceback" not in done.output


def test_rank_killed_after_the_last_step_is_named():
    done = launch("tests/distributed/workers/failing.py", "killed_at_the_end", ranks=2)
    assert done.status != 0
    assert "LaunchError: rank 0 (process" in done.output
    assert "is lost: " in done.output


def test_reference_with_other_weights_than_the_policy_stops_the_run(tmp_path):
    done = launch("tests/distributed/workers/failing.py", "other_reference", ranks=2)
    assert done.status != 0
    assert "policy and reference differ" in done.output
    assert "the loss would not start at 0.6931" in done.output


# More than once: a gloo thread may abort a process that ends by the interpreter's own exit (see process.end).
@pytest.mark.parametrize(
    ("launcher", "repeat"),
    [(False, 0), *(pytest.param(n == 1, n, marks=pytest.mark.long) for n in range(1, 20))],
)
def test_finished_run_has_status_0_and_leaves_no_shared_memory(launcher, repeat, tmp_path):
    done = train("--max_steps", 2, "--save_dir", tmp_path, ranks=2, launcher=launcher).succeeded()
    assert done.left_in_shared_memory == ()


# In bf16 the patches let DeepSpeed's stages 1 and 2 detect an overflow from the norm alone.
@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        *(("zero0", "float32"), ("zero3", "float32"), ("zero2", "bfloat16")),
        *(
            pytest.param(*both, marks=pytest.mark.long)
            for both in (("zero2", "float32"), ("zero1", "bfloat16"), ("zero3", "bfloat16"))
        ),
    ],
)
def test_nonfinite_gradient_stops_the_run_before_the_update(config, dtype, tmp_path):
    flags = (
        "--dtype",
        dtype,
        "--learning_rate",
        1e6,
        "--grad_clip",
        0,
        "--save_interval",
        1,
        "--save_dtype",
        "float32",
    )
    done = train(*flags, "--save_dir", tmp_path, config=config, ranks=2)
    assert done.status != 0
    assert done.output.count("TrainingError: step") == 1
    assert "the gradient is not finite. The update was not made; the newest checkpoint is step" in done.output
    assert f" of {demo.TRAIN_PATH}" in done.output
    (left,) = tmp_path.glob("nonfinite_step*.jsonl")
    pairs = [json.loads(line) for line in left.read_text(encoding="utf-8").splitlines()]
    assert sorted({pair["rank"] for pair in pairs}) == [0, 1]
    singled_out = not all(pair["finite"] for pair in pairs)
    assert ("Losses or log-probs were not finite in" in done.output) == singled_out
    assert str(left) in done.output
    written = demo.TRAIN_PATH.read_text(encoding="utf-8").splitlines()
    assert all(pair["row"] == json.loads(written[pair["line"] - 1]) for pair in pairs)
    weights = torch.load(tmp_path / "dpo_96.pth", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_wrong_flag_is_printed_once_for_all_ranks(tmp_path):
    done = train("--learning_rat", 1, ranks=2)
    assert done.status != 0
    assert done.output.count("did you mean --learning_rate?") == 1

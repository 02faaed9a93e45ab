"""A shortened demo, the first command of a new user: held-out accuracy and answers improve."""

from __future__ import annotations

import re

import pytest

from tests.distributed.launching import metrics, train

pytestmark = pytest.mark.distributed


def test_demo_learns_and_answers_better(tmp_path):
    done = train("--max_steps", 60, "--save_dir", tmp_path, launcher=True).succeeded()
    assert done.output.index("This is the demo") < done.output.index("evaluation at step 0")
    assert "--data_path pairs.jsonl" in done.output
    held_out = metrics(tmp_path, "eval/loss")
    assert held_out[0]["eval/rewards/accuracies"] == pytest.approx(0.5, abs=0.02)
    assert held_out[-1]["step"] == 60
    assert held_out[-1]["eval/rewards/accuracies"] > 0.9

    # The estimate at the start is one of the order of magnitude.
    (estimate,) = re.findall(r"the margin can reach about (\S+) in 60 steps", done.output)
    assert 0.1 < float(estimate) / held_out[-1]["eval/rewards/margins"] < 10

    shown = done.output.partition("Answers, before and after training")[2].splitlines()
    before, after = (
        [line.strip()[7:].strip() for line in shown if line.strip().startswith(w)] for w in ("before", "after")
    )
    assert len(before) == len(after) == 4
    brushed_off = ("Look it up yourself", "我不想说英语", "谁会关心", "自己去查")
    assert any(answer.startswith(brushed_off) for answer in before)
    assert not any(answer.startswith(brushed_off) for answer in after)


@pytest.mark.long
def test_adapters_learn_the_demo_as_well_as_full_training(tmp_path):
    accuracies = {}
    for name, flags in {"full": (), "lora": ("--lora_rank", 8)}.items():
        train("--save_dir", tmp_path / name, *flags).succeeded()
        accuracies[name] = metrics(tmp_path / name, "eval/loss")[-1]["eval/rewards/accuracies"]
    assert accuracies["lora"] > 0.9
    assert accuracies["lora"] == pytest.approx(accuracies["full"], abs=0.02)


def test_flags_override_the_demo_settings(tmp_path):
    flags = ("--learning_rate", 1e-6, "--batch_size", 4, "--max_steps", 1, "--save_dir", tmp_path)
    done = train(*flags).succeeded()
    assert "learning_rate           1e-06  (flag)" in done.output
    assert "180 steps of 4 pairs" in done.output
    assert metrics(tmp_path)[0]["learning_rate"] < 1e-6

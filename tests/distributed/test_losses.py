"""Losses of the global batch and of scores, and running means, do not depend on how the global batch is split over
ranks and micro-batches."""

from __future__ import annotations

import json

import pytest

from minimind import demo
from tests.distributed.launching import metrics, train

pytestmark = pytest.mark.distributed

LOSS = "aot:1,aot_unpaired:0.5,beta_dpo:0.5,bco_pair:0.2,sft:0.1,odpo:0.2,rebel:0.05"
SAME = (
    *("loss", "grad_norm", "rewards/margins", "rewards/accuracies", "beta"),
    *("lengths/chosen", "lengths/rejected", "nll", "entropy", "token_accuracy"),
    *(f"loss/{part.split(':')[0]}" for part in LOSS.split(",")),
)


ANSWERS = "kto:1,bco:0.5"
SAME_ANSWERS = (
    *("loss", "grad_norm", "kl", "rewards/chosen", "rewards/rejected", "logps/chosen", "desirable"),
    *("loss/kto", "loss/bco", "lengths/chosen", "lengths/rejected", "nll", "entropy", "token_accuracy"),
)


def run(folder, data, ranks, config, *split, loss=LOSS):
    train(
        *("--data_path", data, "--eval_data_path", data, "--eval_interval", 2),
        *("--tokenizer_path", demo.TOKENIZER_PATH, "--from_weight", demo.WEIGHT_PATH),
        *("--dtype", "float32", "--learning_rate", 1e-3, "--max_steps", 4, "--log_interval", 1, "--save_interval", 0),
        *("--loss", loss, "--average_log_prob", 0, "--save_dir", folder, *split),
        config=config,
        ranks=ranks,
    ).succeeded()
    return [*metrics(folder), *metrics(folder, "eval/loss")]


# Ranks, file, and flags of the other splits of a global batch of 8 pairs; CACHE stands for a folder.
CACHE = "CACHE"
SPLITS = (
    (2, "zero2", ("--batch_size", 4)),
    (2, "zero3", ("--batch_size", 4, "--micro_batch_tokens", 150, "--reference", "cached", "--cache_dir", CACHE)),
)
MORE_SPLITS = (
    (1, "zero2", ("--batch_size", 2, "--accumulation_steps", 4)),
    (2, "zero3", ("--batch_size", 2, "--accumulation_steps", 2)),
)


@pytest.mark.parametrize("splits", [SPLITS, pytest.param(MORE_SPLITS, marks=pytest.mark.long)], ids=["two", "others"])
def test_the_split_of_the_global_batch_does_not_matter(splits, tmp_path):
    data = tmp_path / "pairs.jsonl"
    lines = demo.TRAIN_PATH.read_text(encoding="utf-8").splitlines()[:35]
    rows = [
        {**json.loads(line), "score_chosen": 3 + place % 5, "score_rejected": 2} for place, line in enumerate(lines)
    ]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    whole = run(tmp_path / "whole", data, 1, "zero2", "--batch_size", 8)
    assert {entry["step"] for entry in whole} == {0, 1, 2, 3, 4}
    # The shift of bco_pair and the running mean of beta_dpo matter from the second step on.
    assert whole[-1]["eval/beta"] != pytest.approx(0.1, rel=1e-3)
    for number, (ranks, config, split) in enumerate(splits):
        split = [tmp_path if word == CACHE else word for word in split]
        compare(run(tmp_path / str(number), data, ranks, config, *split), whole, SAME, number)


def compare(other, whole, same, number):
    """Metrics of training and of evaluations; an evaluation has no norm of the gradient."""
    assert len(other) == len(whole)
    for one, expected in zip(other, whole, strict=True):
        prefix = "eval/" if "eval/loss" in expected else ""
        names = [prefix + name for name in same if prefix + name in expected]
        assert len(names) >= len(same) - 1
        for name in names:
            # Where policy and reference are equal, rounding alone says which answer wins.
            if name.endswith("accuracies") and abs(expected[f"{prefix}rewards/margins"]) < 1e-6:
                continue
            assert one[name] == pytest.approx(expected[name], rel=2e-4, abs=1e-5), (number, expected["step"], name)


def test_labelled_answers_do_not_depend_on_the_split(tmp_path):
    """The KL term is that of the global batch; a cache holds the reference's log-probs of mismatched rows too."""
    data = tmp_path / "answers.jsonl"
    rows = [json.loads(line) for line in demo.TRAIN_PATH.read_text(encoding="utf-8").splitlines()[:35]]
    halves = ["chosen" if place % 3 else "rejected" for place in range(35)]
    answers = [{"messages": row[half], "label": half == "chosen"} for row, half in zip(rows, halves, strict=True)]
    data.write_text("\n".join(map(json.dumps, answers)), encoding="utf-8")
    whole = run(tmp_path / "whole", data, 1, "zero2", "--batch_size", 8, loss=ANSWERS)
    assert whole[-1]["eval/kl"] > 0.05
    cached = ("--batch_size", 2, "--accumulation_steps", 2, "--reference", "cached", "--cache_dir", tmp_path)
    for number, (config, split) in enumerate(
        (("zero3", cached), ("zero2", ("--batch_size", 4, "--micro_batch_tokens", 150)))
    ):
        other = run(tmp_path / str(number), data, 2, config, *split, loss=ANSWERS)
        compare(other, whole, SAME_ANSWERS, number)

"""Checks of the flags that need evaluations."""

from __future__ import annotations

import pytest

from minimind import demo
from minimind.config import SFTConfig, parse_settings
from minimind.objective.losses import build_objective
from minimind.objective.token_mean import TokenMean
from minimind.training.setup.evaluation_checks import EVALUATION_CHECKS, evaluated_metrics
from tests.unit.training.setup.test_checks import draft

HELD_OUT = ("--eval_data_path", str(demo.EVAL_PATH))
BEST = ("--save_best", "eval/loss")


def problems(*flags, objective="sigmoid"):
    one = draft(*flags, objective=build_objective(objective))
    return [str(error) for check in EVALUATION_CHECKS for error in check(one)]


def test_a_run_that_keeps_its_best_weights_is_right():
    assert problems(*BEST, *HELD_OUT, "--eval_interval", "2", "--early_stop", "patience:1") == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--eval_interval", "3"), "--eval_interval needs held-out pairs: --eval_data_path"),
        (BEST, "--save_best needs held-out pairs: --eval_data_path"),
        ((*BEST, *HELD_OUT), "--save_best compares evaluations during training: give --eval_interval"),
        ((*HELD_OUT, "--early_stop", "patience:2", "--eval_interval", "2"), "--early_stop needs --save_best, whose"),
        ((*HELD_OUT, *BEST, "--eval_interval", "2", "--early_stop", "3"), "--early_stop 3: not of the form patience:N"),
        (("--save_best", "loss", *HELD_OUT, "--eval_interval", "2"), "--save_best loss: evaluations have no metric"),
    ],
)
def test_flags_that_cannot_work_are_refused(flags, message):
    (problem,) = problems(*flags)
    assert problem.startswith(message)


def test_metrics_are_those_of_the_objective():
    config = parse_settings(()).config
    mixed = evaluated_metrics(config, build_objective("sigmoid:1,sft:0.2"))
    assert {"eval/loss", "eval/dpo_loss", "eval/nll", "eval/rewards/margins", "eval/loss/sft"} <= mixed.keys()
    sft = evaluated_metrics(parse_settings((), SFTConfig).config, TokenMean())
    assert {"eval/sft_loss", "eval/perplexity", "eval/token_accuracy"} <= sft.keys()
    assert "eval/rewards/accuracies" not in sft


def test_metrics_of_sets_have_their_names():
    path = demo.EVAL_PATH
    flags = ("--eval_data_path", f"zh={path}", f"en={path}", "--eval_interval", "2", "--save_best")
    known = evaluated_metrics(parse_settings(flags[:3]).config, build_objective("sigmoid"))
    assert known["eval/zh/loss"] == known["eval/en/loss"] == "loss"
    assert "eval/loss" not in known
    assert problems(*flags, "eval/zh/loss") == []
    (problem,) = problems(*flags, "eval/loss")
    assert "evaluations have no metric 'eval/loss'; they have: eval/zh/loss" in problem


def test_a_set_is_not_called_like_a_metric():
    (problem,) = problems("--eval_data_path", f"rewards={demo.EVAL_PATH}")
    assert problem == "--eval_data_path rewards=...: eval/rewards/... are names of metrics; give the set another name"

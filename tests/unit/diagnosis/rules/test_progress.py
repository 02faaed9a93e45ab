"""Rules about the course of a run, each on made curves that show the failure, and on ones that do not."""

from __future__ import annotations

import math

from minimind.diagnosis.rules import progress as rules
from tests.unit.diagnosis.made import STEPS, curves, found, made, points


def test_training_pairs_that_are_learnt():
    learnt = {"rewards/accuracies": [0.5, 0.9, 1, 1, 1, 1], "loss": [0.69, 0.2, 0.1, 0.01, 0.01, 0.004]}
    assert rules.memorised(made(logged=learnt)) is not None
    assert rules.memorised(made(logged={**learnt, "loss": 0.1})) is None
    assert rules.memorised(made(logged={**learnt, "rewards/accuracies": [0.5, 1, 1, 1, 0.9, 1]})) is None


def test_an_evaluation_that_turns():
    turned = {"loss": [0.693, 0.6, 0.55, 0.53, 0.58, 0.62]}
    finding = rules.over_optimisation(made(turned))
    assert finding is not None
    assert "the held-out loss has turned: 0.5300 at step 300, now 0.6200, while the training loss falls" in finding.text
    # A single bad evaluation, one that stays about level, and a run that gets worse in training too.
    assert rules.over_optimisation(made({"loss": [0.693, 0.6, 0.55, 0.53, 0.62, 0.54]})) is None
    assert rules.over_optimisation(made({"loss": [0.693, 0.6, 0.55, 0.53, 0.535, 0.536]})) is None
    worse = {"loss": [0.693, 0.6, 0.55, 0.54, 0.6, 0.7]}
    assert rules.over_optimisation(made(turned, worse)) is None


def test_it_turns_in_other_jobs_too():
    logs = points(loss=[3, 2.5, 2.2, 2, 1.8, 1.5])
    assert found(curves(logs, points(loss=[3, 2.6, 2.5, 2.5, 2.7, 2.9]), log_ratios=False, logistic=False)) == [
        "over-optimisation"
    ]


def test_a_run_that_does_not_move():
    still = {"loss": [math.log(2) - step * 1e-9 for step in STEPS]}
    finding = rules.not_moving(made(still))
    assert finding is not None
    assert str(finding) == (
        "the held-out loss has moved by 5e-07 since step 0 (step 500): raise --learning_rate, which is 1.0e-06 at most "
        "so far, by a factor of 10 or more"
    )
    # In bfloat16 it moves by rounding.
    assert rules.not_moving(made({"loss": [0.6931, 0.6928, 0.6933, 0.6930, 0.6932, 0.6933]})) is not None
    # Early in a run, as in its warm-up, nothing is expected.
    assert rules.not_moving(made(still, total_steps=10_000)) is None
    assert rules.not_moving(made({"loss": [0.6931, 0.6931, 0.6931, 0.692, 0.692, 0.692]})) is None
    trained = points(**{"rewards/margins": 1e-6, "learning_rate": 1e-8})
    assert rules.not_moving(curves(trained)) is not None
    noisy = points(**{"rewards/margins": [0, 0.0006, 0.001, 0.0029, -0.0001, -0.0023], "learning_rate": 1e-8})
    finding = rules.not_moving(curves(noisy))
    assert finding is not None
    assert finding.text == "the margin of the training pairs is 3e-04 on average so far"
    assert rules.not_moving(curves(points(**{"rewards/margins": [0, 0.0006, 0.003, 0.004, 0.006, 0.01]}))) is None
    assert rules.not_moving(curves(trained, log_ratios=False)) is None


def test_chosen_answers_that_are_forgotten():
    finding = rules.forgetting(made({"nll": [1.2, 1.22, 1.25, 1.3, 1.4, 1.5]}))
    assert finding is not None
    assert finding.text == "a token of held-out chosen answers costs 1.500 nats, 1.200 at step 0"
    assert rules.forgetting(made({"nll": [1.2, 1.2, 1.2, 1.25, 1.25, 1.3]})) is None
    assert rules.forgetting(made({"nll": [0.1, 0.1, 0.1, 0.11, 0.12, 0.14]})) is None

"""The guard's rules, each on made curves that show the failure, and on ones that do not."""

from __future__ import annotations

import math

import pytest

from minimind.diagnosis import guard
from minimind.diagnosis.guard import PAIRS, RULES, STILL_WRONG, Curves, Point
from minimind.diagnosis.pair_signals import (
    CORRELATION,
    DISPLACED,
    EQUAL_LENGTH_ACCURACY,
    EQUAL_LENGTHS,
    SATURATED,
)

STEPS = (0, 100, 200, 300, 400, 500)


def points(steps=STEPS, **curves):
    """One point for each step; a value that is not a sequence is that of all steps."""
    columns = {name: value if isinstance(value, list) else [value] * len(steps) for name, value in curves.items()}
    return [
        Point(step=step, metrics={name: values[at] for name, values in columns.items() if at < len(values)})
        for at, step in enumerate(steps)
    ]


def curves(logs=(), evaluations=(), total_steps=1000, log_ratios=True, logistic=True):
    return Curves(
        logs=list(logs),
        evaluations=list(evaluations),
        total_steps=total_steps,
        log_ratios=log_ratios,
        logistic=logistic,
    )


def healthy():
    """A run that learns: margins grow, the held-out loss falls with that of training, chosen answers stay likely."""
    evaluated = {
        "loss": [0.693, 0.65, 0.6, 0.56, 0.53, 0.52],
        "nll": [1.2, 1.19, 1.19, 1.2, 1.21, 1.22],
        "rewards/margins": [0, 0.1, 0.25, 0.4, 0.5, 0.55],
        "rewards/accuracies": [0.5, 0.6, 0.68, 0.7, 0.72, 0.72],
        DISPLACED: [0, 0.3, 0.35, 0.4, 0.45, 0.45],
        SATURATED: [0, 0, 0, 0.01, 0.02, 0.03],
        CORRELATION: [0, 0.1, 0.2, 0.2, 0.2, 0.2],
        EQUAL_LENGTH_ACCURACY: [0.5, 0.6, 0.66, 0.69, 0.7, 0.71],
        EQUAL_LENGTHS: 40,
        STILL_WRONG: [0, 0, 0, 0.02, 0.02, 0.03],
        PAIRS: 200,
    }
    logged = {
        "loss": [0.693, 0.64, 0.58, 0.54, 0.5, 0.48],
        "rewards/margins": [0, 0.12, 0.3, 0.45, 0.6, 0.65],
        "rewards/accuracies": [0.5, 0.65, 0.7, 0.75, 0.78, 0.8],
        "learning_rate": 1e-6,
    }
    return evaluated, logged


def made(evaluated=None, logged=None, **facts):
    """Curves of a healthy run with some curves replaced."""
    held_out, trained = healthy()
    return curves(points(**{**trained, **(logged or {})}), points(**{**held_out, **(evaluated or {})}), **facts)


def found(one):
    return [finding.rule for rule in RULES if (finding := rule(one)) is not None]


def test_a_healthy_run_has_no_findings_at_any_step():
    whole = made()
    for at in range(len(STEPS) + 1):
        assert found(curves(whole.logs[:at], whole.evaluations[:at], total_steps=1000)) == []


def test_no_rule_needs_a_metric():
    """Other jobs have other metrics, and the first points of a run are none."""
    assert found(curves()) == []
    assert found(curves(points(loss=[3, 2.5, 2.2, 2, 1.9, 1.8], learning_rate=1e-4))) == []
    assert found(curves(points(), points(loss=[3, 2.5, 2.2, 2, 1.9, 1.8], perplexity=2))) == []


def test_chosen_answers_that_lose_likelihood():
    share = [0, 0.5, 0.7, 0.8, 0.9, 0.95]
    finding = guard.displacement(made({DISPLACED: share}))
    assert str(finding) == (
        "95% of chosen answers have become less likely than under the reference (step 500): try --loss "
        "sigmoid:1,sft:0.2 or dpop"
    )
    # Once is not enough, rewards of losses without a reference are no log-ratios, and nothing has been learnt at 0.
    assert guard.displacement(made({DISPLACED: [0, 0.5, 0.5, 0.5, 0.5, 0.9]})) is None
    assert guard.displacement(made({DISPLACED: share}, log_ratios=False)) is None
    assert guard.displacement(made({DISPLACED: share, "rewards/margins": 1e-4})) is None
    assert guard.displacement(curves((), points((0, 100), **{DISPLACED: [0.9, 0.9], "rewards/margins": 0.1}))) is None


def test_margins_that_follow_length():
    follows = {CORRELATION: [0, 0.4, 0.6, 0.7, 0.7, 0.75], EQUAL_LENGTH_ACCURACY: 0.52}
    finding = guard.length(made(follows))
    assert finding is not None
    assert finding.text == (
        "longer answers win: margins correlate by +0.75 with the difference of lengths, and accuracy is 0.52 where "
        "both answers are about equally long, 0.72 over all"
    )
    shorter = guard.length(made({CORRELATION: -0.8, EQUAL_LENGTH_ACCURACY: 0.5}))
    assert shorter is not None
    assert shorter.text.startswith("shorter answers win")
    # Pairs of equal lengths are learnt as well, or there are too few of them.
    assert guard.length(made({**follows, EQUAL_LENGTH_ACCURACY: 0.7})) is None
    assert guard.length(made({**follows, EQUAL_LENGTHS: 5})) is None
    assert guard.length(made({**follows, CORRELATION: 0.3})) is None


def test_gradients_that_have_vanished():
    finding = guard.saturation(made({SATURATED: [0, 0.2, 0.5, 0.7, 0.8, 0.9]}))
    assert finding is not None
    assert finding.text.startswith("90% of held-out pairs")
    assert guard.saturation(made({SATURATED: 0.7})) is None
    # The gradient of another loss does not vanish at large margins.
    assert guard.saturation(made({SATURATED: 0.9}, logistic=False)) is None


def test_training_pairs_that_are_learnt():
    learnt = {"rewards/accuracies": [0.5, 0.9, 1, 1, 1, 1], "loss": [0.69, 0.2, 0.1, 0.01, 0.01, 0.004]}
    assert guard.memorised(made(logged=learnt)) is not None
    assert guard.memorised(made(logged={**learnt, "loss": 0.1})) is None
    assert guard.memorised(made(logged={**learnt, "rewards/accuracies": [0.5, 1, 1, 1, 0.9, 1]})) is None


def test_an_evaluation_that_turns():
    turned = {"loss": [0.693, 0.6, 0.55, 0.53, 0.58, 0.62]}
    finding = guard.over_optimisation(made(turned))
    assert finding is not None
    assert "the held-out loss has turned: 0.5300 at step 300, now 0.6200, while the training loss falls" in finding.text
    # A single bad evaluation, one that stays about level, and a run that gets worse in training too.
    assert guard.over_optimisation(made({"loss": [0.693, 0.6, 0.55, 0.53, 0.62, 0.54]})) is None
    assert guard.over_optimisation(made({"loss": [0.693, 0.6, 0.55, 0.53, 0.535, 0.536]})) is None
    worse = {"loss": [0.693, 0.6, 0.55, 0.54, 0.6, 0.7]}
    assert guard.over_optimisation(made(turned, worse)) is None


def test_it_turns_in_other_jobs_too():
    logs = points(loss=[3, 2.5, 2.2, 2, 1.8, 1.5])
    assert found(curves(logs, points(loss=[3, 2.6, 2.5, 2.5, 2.7, 2.9]), log_ratios=False, logistic=False)) == [
        "over-optimisation"
    ]


def test_a_run_that_does_not_move():
    still = {"loss": [math.log(2) - step * 1e-9 for step in STEPS]}
    finding = guard.not_moving(made(still))
    assert finding is not None
    assert str(finding) == (
        "the held-out loss has moved by 5e-07 since step 0 (step 500): raise --learning_rate, which is 1.0e-06 at most "
        "so far, by a factor of 10 or more"
    )
    # In bfloat16 it moves by rounding.
    assert guard.not_moving(made({"loss": [0.6931, 0.6928, 0.6933, 0.6930, 0.6932, 0.6933]})) is not None
    # Early in a run, as in its warm-up, nothing is expected.
    assert guard.not_moving(made(still, total_steps=10_000)) is None
    assert guard.not_moving(made({"loss": [0.6931, 0.6931, 0.6931, 0.692, 0.692, 0.692]})) is None
    trained = points(**{"rewards/margins": 1e-6, "learning_rate": 1e-8})
    assert guard.not_moving(curves(trained)) is not None
    noisy = points(**{"rewards/margins": [0, 0.0006, 0.001, 0.0029, -0.0001, -0.0023]})
    assert guard.not_moving(curves(noisy)) is not None
    assert guard.not_moving(curves(points(**{"rewards/margins": [0, 0.0006, 0.003, 0.004, 0.006, 0.01]}))) is None
    assert guard.not_moving(curves(trained, log_ratios=False)) is None


def test_pairs_that_get_more_wrong():
    finding = guard.mislabelled(made({STILL_WRONG: [0, 0, 0, 0.06, 0.08, 0.1]}))
    assert finding is not None
    assert finding.text.startswith("10% of held-out pairs are ranked wrongly")
    assert guard.mislabelled(made({STILL_WRONG: 0.04})) is None
    # A model that has learnt nothing says nothing about labels; nor do few pairs.
    assert guard.mislabelled(made({STILL_WRONG: 0.3, "rewards/accuracies": 0.55})) is None
    assert guard.mislabelled(made({STILL_WRONG: 0.1, PAIRS: 30})) is None


def test_chosen_answers_that_are_forgotten():
    finding = guard.forgetting(made({"nll": [1.2, 1.22, 1.25, 1.3, 1.4, 1.5]}))
    assert finding is not None
    assert finding.text == "a token of held-out chosen answers costs 1.500 nats, 1.200 at step 0"
    assert guard.forgetting(made({"nll": [1.2, 1.2, 1.2, 1.25, 1.25, 1.3]})) is None
    assert guard.forgetting(made({"nll": [0.1, 0.1, 0.1, 0.11, 0.12, 0.14]})) is None


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_rule_names_its_source(rule):
    assert "arXiv" in rule.__doc__ or rule in (guard.memorised, guard.not_moving)

"""Losses without a reference, against values derived by hand."""

from __future__ import annotations

import math

import pytest
import torch

from minimind.objective.losses import LossInputs, Need, loss_class
from tests.unit.objective.losses.pairs import inputs, log_sigmoid, scores, slopes, values

# Sums over 2 and 4 targets, 5 and 1; means -1 and -1.5, -0.4 and -3.
SUMS, COUNTS = [[-2.0, -6.0], [-2.0, -3.0]], [[1, 1, 3], [0, 5, 1]]
MEANS = [[-1.0, -1.5], [-0.4, -3.0]]
NAMES = ["sft", "simpo", "alpha_po", "cpo", "orpo", "simper"]


def log_odds(mean):
    return math.log(math.exp(mean) / (1 - math.exp(mean)))


def power(mean):
    """AlphaPO's reward with beta 1 and alpha 0.5: 2 (1 - P^-0.5)."""
    return 2 * (1 - math.exp(mean) ** -0.5)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("sft", {}, [1.0, 0.4]),
        # 2 * 0.5 - 0.75 and 2 * 2.6 - 0.75.
        ("simpo", {"beta": 2, "gamma": 0.75}, [-log_sigmoid(0.25), -log_sigmoid(4.45)]),
        (
            "simpo",
            {"beta": 2, "gamma": 0.75, "label_smoothing": 0.1},
            [-0.9 * log_sigmoid(m) - 0.1 * log_sigmoid(-m) for m in (0.25, 4.45)],
        ),
        (
            "alpha_po",
            {"beta": 1, "gamma": 0.75, "alpha": 0.5},
            [-log_sigmoid(power(chosen) - power(rejected) - 0.75) for chosen, rejected in MEANS],
        ),
        # Sums for the preference, means for the likelihood.
        ("cpo", {"beta": 0.5}, [-log_sigmoid(2.0) + 1.0, -log_sigmoid(0.5) + 0.4]),
        ("cpo", {"beta": 0.5, "nll_weight": 0}, [-log_sigmoid(2.0), -log_sigmoid(0.5)]),
        (
            "orpo",
            {"odds_weight": 0.25},
            [-c - 0.25 * log_sigmoid(log_odds(c) - log_odds(r)) for c, r in MEANS],
        ),
        ("simper", {}, [math.exp(r) - math.exp(c) for c, r in MEANS]),
    ],
)
def test_values_by_hand(name, options, expected):
    loss, policy = loss_class(name)(**options), scores(SUMS, COUNTS)
    assert values(loss, LossInputs(policy=policy)) == pytest.approx(expected, rel=1e-9)
    assert loss.start_value() is None
    assert Need.REFERENCE not in loss.needs


def test_alpha_po_ends_at_simpo():
    given = inputs(SUMS, counts=COUNTS)
    assert values(loss_class("alpha_po")(alpha=1e-8), given) == pytest.approx(values(loss_class("simpo")(), given))


def test_odds_of_a_certain_answer_stay_finite():
    """A log-prob of 0 has infinite odds; a row without targets has it too. -1e4 is as likely as nothing."""
    loss, certain = loss_class("orpo")(), [[0.0, -1.0], [-1.0, 0.0], [0.0, 0.0], [-1e4, -1e4], [-1e4, 0.0]]
    assert torch.isfinite(loss(inputs(certain)).losses).all()
    assert torch.isfinite(slopes(loss, inputs(certain))).all()
    # log(p / (1 - p)) near p = 1 is -log(-log p): 4 ln 10 for log p = -1e-4.
    value = loss_class("orpo")(odds_weight=1.0)(inputs([[-1e-4, -math.log(2)]])).losses.item()
    assert value == pytest.approx(1e-4 - log_sigmoid(4 * math.log(10)), rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_chosen_answers_become_likelier_and_rejected_ones_never(name):
    gradient = slopes(loss_class(name)(), inputs(SUMS, counts=COUNTS))
    assert (gradient[:, 0] < 0).all()
    assert (gradient[:, 1] >= 0).all()

"""Losses of the margin, against values derived by hand."""

from __future__ import annotations

import math

import pytest
import torch

from minimind.objective.losses import loss_class
from minimind.objective.losses.margin import SigmoidLoss
from tests.unit.objective.losses.pairs import LN2, inputs, log_sigmoid, sigmoid, slopes, values

# Log-ratios of two pairs: margins 4 and -2.
RATIOS = [[3.0, -1.0], [-1.5, 0.5]]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        # beta 0.5: scaled margins 2 and -1.
        ("sigmoid", {"beta": 0.5}, [-log_sigmoid(2), -log_sigmoid(-1)]),
        (
            "sigmoid",
            {"beta": 0.5, "label_smoothing": 0.25},
            [-0.75 * log_sigmoid(2) - 0.25 * log_sigmoid(-2), -0.75 * log_sigmoid(-1) - 0.25 * log_sigmoid(1)],
        ),
        ("sigmoid_norm", {"beta": 0.5}, [-log_sigmoid(2), -log_sigmoid(-1)]),
        ("sigmoid_norm", {}, [-log_sigmoid(20), -log_sigmoid(-10)]),
        # (1 - 0.25) / (1 - 0.5) = 1.5 and 0.25 / 0.5 = 0.5.
        (
            "robust",
            {"beta": 0.5, "label_smoothing": 0.25},
            [-1.5 * log_sigmoid(2) + 0.5 * log_sigmoid(-2), -1.5 * log_sigmoid(-1) + 0.5 * log_sigmoid(1)],
        ),
        ("robust", {"beta": 0.5, "label_smoothing": 0.0}, [-log_sigmoid(2), -log_sigmoid(-1)]),
        ("hinge", {"beta": 0.5}, [0.0, 2.0]),
        ("hinge", {"beta": 0.125}, [0.5, 1.25]),
        # 1 / (2 beta) = 1.
        ("ipo", {"beta": 0.5}, [9.0, 9.0]),
        (
            "exo_pair",
            {"beta": 0.5, "label_smoothing": 0.1},
            [
                sigmoid(m) * (log_sigmoid(m) - math.log(0.9)) + sigmoid(-m) * (log_sigmoid(-m) - math.log(0.1))
                for m in (2, -1)
            ],
        ),
        (
            "discopop",
            {"beta": 0.5, "tau": 0.5},
            [sigmoid(-m / 0.5) * -log_sigmoid(m) + sigmoid(m / 0.5) * math.exp(-m) for m in (2, -1)],
        ),
        ("focal", {"beta": 0.5, "gamma": 2}, [-(sigmoid(m) ** 2) * log_sigmoid(m) for m in (2, -1)]),
        ("focal", {"beta": 0.5, "gamma": 0}, [-log_sigmoid(2), -log_sigmoid(-1)]),
    ],
)
def test_values_by_hand(name, options, expected):
    assert values(loss_class(name)(**options), inputs(RATIOS)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sigmoid", LN2),
        ("sigmoid_norm", LN2),
        ("robust", LN2),
        ("hinge", 1.0),
        ("ipo", 25.0),
        ("exo_pair", -LN2 - 0.5 * math.log(1e-3 * (1 - 1e-3))),
        ("discopop", (LN2 + 1) / 2),
        ("focal", 0.5**0.05 * LN2),
    ],
)
def test_start_values(name, expected):
    assert loss_class(name)().start_value() == pytest.approx(expected, rel=1e-9)


def test_metrics_of_dpo_by_hand():
    # rewards 0.5 * (1, -1), 0.5 * (1, 1), 0.5 * (0, 2): margins 1, 0, -1
    given = inputs([[-3.0, -6.0], [-1.0, -1.0], [-4.0, -2.0]], [[-4.0, -5.0], [-2.0, -2.0], [-4.0, -4.0]])
    assert {name: metric.tolist() for name, metric in SigmoidLoss(beta=0.5)(given).metrics.items()} == {
        "rewards/chosen": [0.5, 0.5, 0.0],
        "rewards/rejected": [-0.5, 0.5, 1.0],
        "rewards/accuracies": [1.0, 0.5, 0.0],
        "rewards/margins": [1.0, 0.0, -1.0],
        "logps/chosen": [-3.0, -1.0, -4.0],
        "logps/rejected": [-6.0, -1.0, -2.0],
    }


# Smoothing s holds the policy where it prefers chosen with probability 1 - s: sigmoid(ln 3) = 0.75.
@pytest.mark.parametrize("name", ["sigmoid", "exo_pair"])
def test_smoothed_losses_settle_at_the_labels_certainty(name):
    loss = loss_class(name)(beta=1.0, label_smoothing=0.25)
    assert slopes(loss, inputs([[math.log(3), 0.0]])).tolist()[0] == pytest.approx([0.0, 0.0], abs=1e-12)
    below, above = slopes(loss, inputs([[1.0, 0.0], [1.2, 0.0]]))[:, 0].tolist()
    assert below < 0 < above


def test_robust_loss_of_flipped_labels_is_dpo_on_average():
    """With probability s the halves are exchanged: (1 - s) L(m) + s L(-m) = -log sigmoid(m)."""
    robust, dpo = loss_class("robust")(label_smoothing=0.2), SigmoidLoss()
    right, flipped = inputs(RATIOS), inputs([row[::-1] for row in RATIOS])
    mean = [0.8 * one + 0.2 * other for one, other in zip(values(robust, right), values(robust, flipped), strict=True)]
    assert mean == pytest.approx(values(dpo, right), rel=1e-9)


def test_extreme_margins_neither_overflow_nor_lose_the_gradient():
    """-log sigmoid(-x) is x for a large x, with slope -1; for a large margin it is 0, with slope 0."""
    given = inputs([[-1e4, 0.0], [0.0, -1e4]])
    for name in ("sigmoid", "focal"):
        loss = loss_class(name)(beta=1.0, **({"gamma": 0.0} if name == "focal" else {}))
        assert values(loss, given) == [1e4, 0.0]
        assert slopes(loss, given).tolist() == [[-1.0, 1.0], [0.0, 0.0]]
    # exp(1e4) alone overflows; the part's weight is exp(-2e5).
    assert values(loss_class("discopop")(beta=1.0), given) == [1e4, 0.0]
    assert torch.isfinite(slopes(loss_class("discopop")(beta=1.0), given)).all()


@pytest.mark.parametrize("tau", [0.05, 0.1, 0.2, 1.0])
def test_discopop_starts_uphill_for_small_tau(tau):
    (slope,) = slopes(loss_class("discopop")(beta=1.0, tau=tau), inputs([[0.0, 0.0]]))[:, 0].tolist()
    assert slope == pytest.approx((1 - LN2) / (4 * tau) - 0.75)
    assert (slope > 0) == (tau <= 0.1)


def test_ipo_takes_means_by_default():
    """Sums -6 and -4 over 3 and 2 tokens are means of -2 and -2: the margin is 0."""
    assert values(loss_class("ipo")(beta=0.5), inputs([[-6.0, -4.0]], counts=[[1, 2, 1]])) == [1.0]

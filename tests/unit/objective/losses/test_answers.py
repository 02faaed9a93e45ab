"""Losses of each answer's log-ratio, against values derived by hand."""

from __future__ import annotations

import pytest
import torch

from minimind.objective.losses import loss_class
from tests.unit.objective.losses.pairs import LN2, inputs, log_sigmoid, sigmoid, slopes, values

# Log-ratios of two pairs. With beta 0.5: rewards 2 and -1, -1 and 3.
RATIOS = [[4.0, -2.0], [-2.0, 6.0]]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        (
            "nca_pair",
            {"beta": 0.5},
            [
                -log_sigmoid(2) - 0.5 * log_sigmoid(-2) - 0.5 * log_sigmoid(1),
                -log_sigmoid(-1) - 0.5 * log_sigmoid(1) - 0.5 * log_sigmoid(-3),
            ],
        ),
        ("bco_pair", {"beta": 0.5}, [-log_sigmoid(2) - log_sigmoid(1), -log_sigmoid(-1) - log_sigmoid(-3)]),
        # 1 / (2 beta) = 1: (4 - 1)^2 + (-2 + 1)^2, (-2 - 1)^2 + (6 + 1)^2.
        ("sppo_hard", {"beta": 0.5}, [10.0, 58.0]),
        ("cal_dpo", {"beta": 0.5}, [10.0 - log_sigmoid(6), 58.0 - log_sigmoid(-8)]),
        ("apo_zero", {"beta": 0.5}, [1 - sigmoid(2) + sigmoid(-1), 1 - sigmoid(-1) + sigmoid(3)]),
        ("apo_down", {"beta": 0.5}, [sigmoid(2) + 1 - sigmoid(3), sigmoid(-1) + 1 - sigmoid(-4)]),
        # Chosen fell in the second pair only, by 2: 0.5 * (-8 - 5 * 2) = -9.
        ("dpop", {"beta": 0.5, "penalty": 5}, [-log_sigmoid(3), -log_sigmoid(-9)]),
        ("dpop", {"beta": 0.5, "penalty": 0}, [-log_sigmoid(3), -log_sigmoid(-4)]),
        # One token in each row.
        ("rdpo", {"beta": 0.5}, [-log_sigmoid(3), -log_sigmoid(-4)]),
    ],
)
def test_values_by_hand(name, options, expected):
    assert values(loss_class(name)(**options), inputs(RATIOS)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nca_pair", 2 * LN2),
        ("bco_pair", 2 * LN2),
        ("sppo_hard", 50.0),
        ("cal_dpo", LN2 + 50.0),
        ("apo_zero", 1.0),
        ("apo_down", 1.0),
        ("dpop", LN2),
        ("rdpo", None),
    ],
)
def test_start_values(name, expected):
    assert loss_class(name)().start_value() == (None if expected is None else pytest.approx(expected, rel=1e-9))


def test_bco_subtracts_the_running_mean_of_rewards():
    """Shift 0.5: rewards 1.5 and -1.5, -1.5 and 2.5. It reports the mean reward of each pair, without its own shift."""
    loss = loss_class("bco_pair")(beta=0.5)
    result = loss(inputs(RATIOS, statistics={"reward": 0.5}))
    expected = [-2 * log_sigmoid(1.5), -log_sigmoid(-1.5) - log_sigmoid(-2.5)]
    assert result.losses.tolist() == pytest.approx(expected, rel=1e-9)
    assert result.statistics["reward"].tolist() == [0.5, 1.0]
    assert loss.statistics == {"reward": 1.0}
    assert result.metrics["rewards/chosen"].tolist() == [2.0, -1.0]


def test_bco_without_a_shift_keeps_no_statistics():
    loss = loss_class("bco_pair")(beta=0.5, reward_shift=False)
    assert loss.statistics == {}
    assert loss(inputs(RATIOS)).statistics == {}


def test_longer_chosen_answers_need_a_smaller_margin():
    """3 and 1 tokens: 0.1 * (3 - 1) is added; 1 and 5: 0.1 * (1 - 5)."""
    given = inputs(RATIOS, counts=[[0, 3, 1], [0, 1, 5]])
    expected = [-log_sigmoid(3 + 0.2), -log_sigmoid(-4 - 0.4)]
    assert values(loss_class("rdpo")(beta=0.5, alpha=0.1), given) == pytest.approx(expected, rel=1e-9)


def test_smaug_pulls_a_fallen_chosen_answer_up():
    """Without the penalty the slopes of both answers are opposite; with it chosen's is 1 + penalty times as large."""
    chosen, rejected = slopes(loss_class("dpop")(penalty=9), inputs([[-1.0, 0.0]]))[0].tolist()
    assert chosen == pytest.approx(-10 * rejected)
    chosen, rejected = slopes(loss_class("dpop")(penalty=9), inputs([[1.0, 0.0]]))[0].tolist()
    assert chosen == pytest.approx(-rejected)


@pytest.mark.parametrize("name", ["nca_pair", "bco_pair", "apo_zero", "apo_down", "dpop", "cal_dpo", "sppo_hard"])
def test_extreme_ratios_stay_finite(name):
    given = inputs([[1e4, -1e4], [-1e4, 1e4], [1e4, 1e4]])
    assert torch.isfinite(loss_class(name)()(given).losses).all()
    assert torch.isfinite(slopes(loss_class(name)(), given)).all()

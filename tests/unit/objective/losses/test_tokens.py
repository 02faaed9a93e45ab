"""Losses of parts of answers, against values derived by hand."""

from __future__ import annotations

import math

import pytest
import torch

from minimind.objective.losses import LossInputs, Need, PairScores, loss_class
from tests.unit.objective.losses.pairs import LN2, inputs, log_sigmoid, sigmoid, slopes, values

# Two pairs: 1 target in the prefix, 3 of chosen, 1 of rejected; no prefix, 2 and 4 targets.
COUNTS = torch.tensor([[1, 3, 1], [0, 2, 4]])
POLICY = [-1.0, -2.0, -4.0, -8.0, -3.0, -1.0, -2.0, -1.0, -1.0, -2.0, -4.0]


def scores(tokens):
    sums = torch.tensor([[-15.0, -4.0], [-3.0, -8.0]]) if tokens is POLICY else torch.zeros(2, 2)
    return PairScores(sums=sums, target_counts=COUNTS, per_token=torch.tensor(tokens))


@pytest.mark.parametrize(
    ("ld_alpha", "margins"),
    [
        # Heads of 2 and 2 targets: chosen -1 - 2 = -3, tail -12; rejected -4. Then chosen -3; rejected -2, tail -6.
        (0.0, [-3 + 4, -3 + 2]),
        (0.5, [-3 - 6 + 4, -3 + 2 + 3]),
        (1.0, [-15 + 4, -3 + 8]),
    ],
)
def test_tokens_beyond_the_shorter_answer_count_less(ld_alpha, margins):
    given = LossInputs(policy=scores(POLICY), reference=scores([0.0] * 11))
    expected = [-log_sigmoid(0.5 * margin) for margin in margins]
    assert values(loss_class("ld_dpo")(beta=0.5, ld_alpha=ld_alpha), given) == pytest.approx(expected, rel=1e-6)
    assert loss_class("ld_dpo")().start_value() == pytest.approx(LN2)


def test_all_tokens_are_dpo_of_sums():
    given = inputs([[-9.0, -5.0], [-2.0, -8.0]], [[-7.0, -6.0], [-3.0, -3.0]], counts=COUNTS.tolist())
    dpo = loss_class("sigmoid")(average_log_prob=False)
    assert values(loss_class("ld_dpo")(ld_alpha=1.0), given) == pytest.approx(values(dpo, given), rel=1e-12)


def test_likely_answers_count_more():
    """Collision log-probs are -1 at each position (`with_tokens`): 2 and 1 targets, so aligned means of -3/2 + 1 and
    -4 + 1. The weight has no gradient."""
    given = inputs([[-3.0, -4.0]], [[-4.0, -3.0]], counts=[[0, 2, 1]])
    loss = loss_class("wpo")(beta=0.5, average_log_prob=False)
    weight = math.exp(-0.5 - 3.0)
    result = loss(given)
    assert result.metrics["weight"].item() == pytest.approx(weight)
    assert result.losses.item() == pytest.approx(-weight * log_sigmoid(1.0))
    assert slopes(loss, given).tolist()[0] == pytest.approx([-weight * 0.5 * sigmoid(-1), weight * 0.5 * sigmoid(-1)])
    assert loss.start_value() is None
    assert Need.COLLISIONS in loss.needs

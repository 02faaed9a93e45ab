"""f-DPO, against values derived by hand from the derivative of each divergence's function."""

from __future__ import annotations

import math

import pytest
import torch

from minimind.objective.losses import loss_class
from tests.unit.objective.losses.pairs import LN2, inputs, log_sigmoid, slopes, values

# Ratios of probabilities: 2 and 1/4, 1 and 3.
U = [[2.0, 0.25], [1.0, 3.0]]
RATIOS = [[math.log(u) for u in row] for row in U]
# f'(u), in the table of the paper.
SLOPES = {
    "reverse_kl": lambda u: math.log(u) + 1,
    "forward_kl": lambda u: -1 / u,
    "js_divergence": lambda u: math.log(2 * u / (1 + u)),
    "alpha_divergence": lambda u: (1 - u**-0.25) / 0.25,
}


@pytest.mark.parametrize("name", SLOPES)
def test_values_by_hand(name):
    options = {"alpha": 0.25} if name == "alpha_divergence" else {}
    loss = loss_class(name)(beta=0.5, **options)
    expected = [-log_sigmoid(0.5 * (SLOPES[name](chosen) - SLOPES[name](rejected))) for chosen, rejected in U]
    assert values(loss, inputs(RATIOS)) == pytest.approx(expected, rel=1e-9)
    assert loss.start_value() == pytest.approx(LN2)
    rewards = loss(inputs(RATIOS)).metrics["rewards/margins"].tolist()
    assert rewards == pytest.approx([0.5 * (SLOPES[name](a) - SLOPES[name](b)) for a, b in U], rel=1e-9)


def test_reverse_kl_is_dpo_of_sums():
    given = inputs(RATIOS, counts=[[1, 2, 3], [0, 4, 1]])
    dpo = loss_class("sigmoid")(average_log_prob=False)
    assert values(loss_class("reverse_kl")(), given) == values(dpo, given)


@pytest.mark.parametrize(("alpha", "limit"), [(1e-7, "reverse_kl"), (1 - 1e-7, "forward_kl")])
def test_alpha_divergences_end_at_both_kls(alpha, limit):
    given = inputs(RATIOS)
    limits = values(loss_class(limit)(), given)
    assert values(loss_class("alpha_divergence")(alpha=alpha), given) == pytest.approx(limits, abs=1e-6)


def test_the_reward_of_js_has_an_upper_bound():
    """beta ln 2, so a chosen answer that is already likely gives no gradient."""
    loss = loss_class("js_divergence")(beta=1.0)
    given = inputs([[1e4, 0.0], [-1e4, 1e4]])
    assert loss(given).metrics["rewards/chosen"].tolist() == pytest.approx([LN2, LN2 - 1e4])
    assert slopes(loss, given)[0, 0] == 0.0
    assert torch.isfinite(slopes(loss, given)).all()

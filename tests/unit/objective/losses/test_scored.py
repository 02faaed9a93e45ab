"""Losses of scores, against values derived by hand and formulas in float64, at ordinary and extreme log-probs."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from minimind.objective.losses import Need, loss_class
from tests.unit.objective.losses.pairs import inputs, log_sigmoid, sigmoid, slopes, values

# Margins 4 and -2 with gaps 3 and 0.5; with beta 0.5: 2 and -1.
GIVEN = dataclasses.replace(inputs([[3.0, -1.0], [-1.5, 0.5]]), scores=torch.tensor([[4.0, 1.0], [-0.5, -1.0]]))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("odpo", {"beta": 0.5}, [-log_sigmoid(2 - math.log(3)), -log_sigmoid(-1 - math.log(0.5))]),
        ("odpo", {"beta": 0.5, "alpha": 2}, [-log_sigmoid(2 - 2 * math.log(3)), -log_sigmoid(-1 - 2 * math.log(0.5))]),
        ("odpo", {"beta": 0.5, "alpha": 0}, [-log_sigmoid(2), -log_sigmoid(-1)]),
        ("rebel", {"beta": 0.5}, [1.0, 2.25]),
    ],
)
def test_values_by_hand(name, options, expected):
    loss = loss_class(name)(**options)
    assert values(loss, GIVEN) == pytest.approx(expected, rel=1e-9)
    assert loss.start_value() is None
    assert Need.SCORES in loss.needs


def by_hand(name, margin, gap):
    """Loss and its derivative in the log-prob of chosen, with beta 0.1 and alpha 1."""
    if name == "odpo":
        logit = 0.1 * margin - math.log(gap)
        # -log sigmoid(x) = log(1 + exp(-x)), with slope -sigmoid(-x).
        return (math.log1p(math.exp(-logit)) if logit > -500 else -logit), -0.1 * sigmoid(-logit)
    return (0.1 * margin - gap) ** 2, 0.2 * (0.1 * margin - gap)


@pytest.mark.parametrize("name", ["odpo", "rebel"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_values_and_gradients_at_any_size(name, scale):
    """Random log-ratios, equal ones (scale 0) and ones of 1e4, which overflow an exponential."""
    generator = torch.Generator().manual_seed(5)
    ratios = torch.randn(20, 2, generator=generator, dtype=torch.float64) * scale
    rejected = torch.randn(20, generator=generator, dtype=torch.float64)
    gaps = torch.rand(20, generator=generator, dtype=torch.float64) * 3 + 0.01
    given = dataclasses.replace(inputs(ratios), scores=torch.stack((rejected + gaps, rejected), 1))
    expected = [by_hand(name, *one) for one in zip((ratios[:, 0] - ratios[:, 1]).tolist(), gaps.tolist(), strict=True)]
    loss = loss_class(name)(average_log_prob=False) if name == "odpo" else loss_class(name)()
    assert values(loss, given) == pytest.approx([value for value, _ in expected], rel=1e-9)
    slope = slopes(loss, given)
    assert slope[:, 0].tolist() == pytest.approx([derivative for _, derivative in expected], rel=1e-9, abs=1e-300)
    torch.testing.assert_close(slope[:, 1], -slope[:, 0], rtol=1e-12, atol=0)


def test_equal_scores_are_regressed_to_by_rebel():
    given = dataclasses.replace(inputs([[3.0, -1.0], [-1.5, 0.5]]), scores=torch.tensor([[2.0, 2.0], [1.0, 3.0]]))
    assert values(loss_class("rebel")(beta=0.5), given) == pytest.approx([4.0, 1.0])


def test_only_odpo_needs_gaps_above_0():
    assert [Need.SCORE_GAPS in loss_class(name).needs for name in ("odpo", "rebel")] == [True, False]

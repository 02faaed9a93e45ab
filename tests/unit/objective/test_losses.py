"""Preference losses, their metrics and their registry, against values derived by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import pytest
import torch

from minimind.objective import losses as module
from minimind.objective.losses import (
    REWARD_METRICS,
    Need,
    PairLosses,
    PairScores,
    PreferenceLoss,
    SigmoidLoss,
    build_loss,
    loss_names,
    register_loss,
)

LN2 = math.log(2)


def minus_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x))


def scores(rows, **tensor_options) -> PairScores:
    """Row log-probs (N, 2) of pairs with one target a row."""
    tensor = torch.tensor(rows, **tensor_options)
    return PairScores(rows=tensor, target_counts=torch.tensor([[0, 1, 1]] * len(rows)))


@pytest.fixture
def registry(monkeypatch):
    """A copy of the registry that a test may add to."""
    monkeypatch.setattr(module, "_LOSSES", dict(module._LOSSES))


class TestSigmoid:
    def test_values_by_hand(self):
        policy = scores([[-3.0, -6.0], [-1.0, -1.0], [-4.0, -2.0]])
        reference = scores([[-4.0, -5.0], [-2.0, -2.0], [-4.0, -4.0]])
        # rewards 0.5 * (1, -1), 0.5 * (1, 1), 0.5 * (0, 2): margins 1, 0, -1
        result = SigmoidLoss(beta=0.5)(policy, reference)
        metrics = {name: values.tolist() for name, values in result.metrics.items()}
        assert metrics == {
            "rewards/chosen": [0.5, 0.5, 0.0],
            "rewards/rejected": [-0.5, 0.5, 1.0],
            "rewards/accuracies": [1.0, 0.5, 0.0],
            "rewards/margins": [1.0, 0.0, -1.0],
            "logps/chosen": [-3.0, -1.0, -4.0],
            "logps/rejected": [-6.0, -1.0, -2.0],
        }
        expected = [minus_log_sigmoid(1.0), LN2, minus_log_sigmoid(-1.0)]
        assert result.losses.tolist() == pytest.approx(expected, abs=1e-6)

    def test_a_tie_counts_as_half_an_accuracy(self):
        policy = scores([[-1.0, -2.0], [-2.0, -2.0], [-3.0, -2.0]])
        result = SigmoidLoss()(policy, scores([[-2.0, -2.0]] * 3))
        assert result.metrics["rewards/accuracies"].tolist() == [1.0, 0.5, 0.0]

    def test_only_the_losses_carry_a_gradient(self):
        result = SigmoidLoss()(scores([[-1.0, -2.0]], requires_grad=True), scores([[-1.5, -2.0]]))
        assert result.losses.requires_grad
        assert not any(values.requires_grad for values in result.metrics.values())

    def test_extreme_margins_neither_overflow_nor_lose_the_gradient(self):
        """-log sigmoid(-x) is x for a large x, with slope -1; for a large margin it is 0, with slope 0."""
        policy = scores([[-1000.0, 0.0], [0.0, -1000.0]], requires_grad=True)
        losses = SigmoidLoss(beta=1.0)(policy, scores([[0.0, 0.0]] * 2)).losses
        losses.sum().backward()
        assert losses.tolist() == [1000.0, 0.0]
        assert policy.rows.grad.tolist() == [[-1.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize("name", loss_names())
def test_a_loss_starts_at_its_start_value(name):
    """Policy and reference are the same model."""
    loss = build_loss(name, {})
    same = scores([[-1.5, -2.5], [-0.1, -9.0]])
    result = loss(same, same if Need.REFERENCE in loss.needs else None, {})
    if loss.start_value() is not None:
        assert result.losses.tolist() == pytest.approx([loss.start_value()] * 2, abs=1e-6)


@pytest.mark.parametrize("name", loss_names())
def test_a_loss_returns_the_metrics_that_it_declares(name):
    loss = build_loss(name, {})
    same = scores([[-1.5, -2.5]])
    result = loss(same, same if Need.REFERENCE in loss.needs else None, {})
    assert tuple(result.metrics) == loss.metrics
    assert all(values.shape == (1,) for values in result.metrics.values())


def test_options_come_from_settings_of_the_same_name():
    assert build_loss("sigmoid", {"beta": 0.7, "epochs": 3}) == SigmoidLoss(beta=0.7)
    assert build_loss("sigmoid", {}) == SigmoidLoss(beta=0.1)


def test_an_unknown_name_is_a_key_error():
    with pytest.raises(KeyError, match="sigmoidal"):
        build_loss("sigmoidal", {})


def test_a_registered_loss_is_found_by_its_name(registry):
    @register_loss
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Difference(PreferenceLoss):
        """Rejected minus chosen, without a reference."""

        name: ClassVar[str] = "difference"
        needs: ClassVar[frozenset[Need]] = frozenset()
        metrics: ClassVar[tuple[str, ...]] = ("difference",)
        scale: float = 1.0

        def start_value(self) -> None:
            return None

        def __call__(self, policy, reference, statistics):
            values = self.scale * (policy.rows[:, 1] - policy.rows[:, 0])
            return PairLosses(losses=values, metrics={"difference": values.detach()})

    assert "difference" in loss_names()
    assert build_loss("difference", {"scale": 2.0})(scores([[-1.0, -4.0]]), None, {}).losses.tolist() == [-6.0]


def test_two_losses_cannot_share_a_name(registry):
    with pytest.raises(ValueError, match="two losses are named 'sigmoid'"):

        @register_loss
        class Other(SigmoidLoss):
            pass


def test_reward_metrics_are_named_as_in_trl():
    assert REWARD_METRICS[:4] == ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins")

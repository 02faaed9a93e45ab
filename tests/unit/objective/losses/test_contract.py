"""The contract of losses: what their inputs mean, and their common metrics."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from minimind.objective.losses import REWARD_METRICS, SigmoidLoss, reward_metrics
from tests.unit.objective.losses.pairs import inputs, scores

COUNTS = [[1, 1, 3], [0, 0, 0]]


def test_rows_are_sums_or_means():
    """2 and 4 targets. A row without targets has a mean of 0, as in MiniMind."""
    one = scores([[-6.0, -8.0], [0.0, 0.0]], COUNTS)
    assert one.lengths.tolist() == [[2, 4], [0, 0]]
    assert one.rows(average_log_prob=False).tolist() == [[-6.0, -8.0], [0.0, 0.0]]
    assert one.rows(average_log_prob=True).tolist() == [[-3.0, -2.0], [0.0, 0.0]]


def test_ratios_are_policy_minus_reference():
    given = inputs([[-6.0, -8.0]], [[-2.0, -4.0]], counts=COUNTS[:1])
    assert given.ratios(average_log_prob=False).tolist() == [[-4.0, -4.0]]
    assert given.ratios(average_log_prob=True).tolist() == [[-2.0, -1.0]]


def test_a_tie_counts_as_half_an_accuracy():
    rewards = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    assert reward_metrics(scores(rewards), rewards, False)["rewards/accuracies"].tolist() == [1.0, 0.5, 0.0]


def test_reward_metrics_are_named_as_in_trl():
    assert REWARD_METRICS[:4] == ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins")
    rewards = torch.zeros(1, 2)
    assert tuple(reward_metrics(scores(rewards), rewards, True)) == REWARD_METRICS


@pytest.mark.parametrize(("average", "expected"), [(True, [-3.0, -2.0]), (False, [-6.0, -8.0])])
def test_log_probs_are_logged_as_the_loss_takes_them(average, expected):
    metrics = SigmoidLoss(average_log_prob=average)(inputs([[-6.0, -8.0]], counts=COUNTS[:1])).metrics
    assert [metrics[name].item() for name in ("logps/chosen", "logps/rejected")] == expected


def test_a_loss_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SigmoidLoss().beta = 1.0

"""A metric is the mean over all pairs since the last logged step, whatever micro-batches they came in."""

from __future__ import annotations

import math

import pytest
import torch

from minimind.engine.process import World
from minimind.objective.dpo import pair_outcomes
from minimind.training.metrics import MetricSums

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def outcomes(*margins: float):
    """Pairs whose margins are given: beta 1, reference 0, a chosen row's log-prob the margin, the other 0."""
    policy = torch.tensor([[margin, 0.0] for margin in margins])
    return pair_outcomes(policy, torch.zeros_like(policy), beta=1.0)


def test_means_are_over_pairs_not_over_micro_batches(one_rank):
    sums = MetricSums(WORLD)
    sums.add(outcomes(1.0, 2.0, -3.0), torch.tensor(0.25), row_tokens=30)
    sums.add(outcomes(0.0), torch.tensor(0.25), row_tokens=10)
    metrics = sums.reduce(seconds=2.0)
    # (1 + 2 - 3 + 0) / 4; two wins, one loss, one tie.
    assert metrics["rewards/margins"] == pytest.approx(0.0)
    assert metrics["rewards/accuracies"] == pytest.approx(2.5 / 4)
    expected = sum(math.log1p(math.exp(-margin)) for margin in (1, 2, -3, 0)) / 4
    assert metrics["dpo_loss"] == pytest.approx(expected, rel=1e-6)
    assert metrics["loss"] == pytest.approx(expected + 0.25, rel=1e-6)
    assert metrics["aux_loss"] == pytest.approx(0.25)
    assert metrics["tokens_per_second"] == pytest.approx(20)
    assert metrics["pairs_per_second"] == pytest.approx(2)
    assert metrics["peak_memory_gib"] > 0


def test_weight_0_leaves_a_pair_out(one_rank):
    sums = MetricSums(WORLD)
    sums.add(outcomes(1.0, 5.0), torch.tensor(0.0), row_tokens=10, weights=torch.tensor([1.0, 0.0]))
    assert sums.reduce(seconds=1.0)["rewards/margins"] == pytest.approx(1.0)


def test_reset_starts_anew(one_rank):
    sums = MetricSums(WORLD)
    sums.add(outcomes(4.0), torch.tensor(0.0), row_tokens=10)
    sums.reset()
    sums.add(outcomes(1.0), torch.tensor(0.0), row_tokens=10)
    assert sums.reduce(seconds=1.0)["rewards/margins"] == pytest.approx(1.0)

"""A metric is the mean over all pairs since the last logged step, whatever micro-batches they came in."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch

from minimind.objective.dpo import pair_outcomes
from minimind.ranks.process import World
from minimind.training import metrics
from minimind.training.metrics import MetricSums, StepMetrics

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def outcomes(*margins: float):
    """Pairs whose margins are given: beta 1, reference 0, a chosen row's log-prob the margin, the other 0."""
    policy = torch.tensor([[margin, 0.0] for margin in margins])
    return pair_outcomes(policy, torch.zeros_like(policy), beta=1.0)


def test_means_are_over_pairs_not_over_micro_batches(one_rank):
    sums = MetricSums(WORLD)
    sums.add(outcomes(1.0, 2.0, -3.0), torch.tensor(0.25), row_tokens=30)
    sums.add(outcomes(0.0), torch.tensor(0.25), row_tokens=10)
    means = sums.reduce(seconds=2.0)
    # (1 + 2 - 3 + 0) / 4; two wins, one loss, one tie.
    assert means["rewards/margins"] == pytest.approx(0.0)
    assert means["rewards/accuracies"] == pytest.approx(2.5 / 4)
    expected = sum(math.log1p(math.exp(-margin)) for margin in (1, 2, -3, 0)) / 4
    assert means["dpo_loss"] == pytest.approx(expected, rel=1e-6)
    assert means["loss"] == pytest.approx(expected + 0.25, rel=1e-6)
    assert means["aux_loss"] == pytest.approx(0.25)
    assert means["tokens_per_second"] == pytest.approx(20)
    assert means["pairs_per_second"] == pytest.approx(2)
    assert means["peak_memory_gib"] > 0


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


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def take_steps(since, clock, *margins):
    """Steps of one pair, 4 tokens and 2 seconds each, with a gradient norm like the margin."""
    for margin in margins:
        clock.seconds += 2.0
        since.sums.add(outcomes(margin), torch.tensor(0.1), row_tokens=4)
        since.add_norm(torch.tensor(margin))


def test_a_run_that_goes_on_between_logged_steps_logs_what_the_other_does(one_rank, clock):
    margins = (0.1, 0.7, -0.3, 1e-7, 0.2)
    whole = StepMetrics(WORLD, {})
    take_steps(whole, clock, *margins)
    whole.pause()
    expected = whole.reduce()
    assert expected["grad_norm"] == pytest.approx(sum(margins) / 5)
    assert expected["pairs_per_second"] == pytest.approx(0.5)

    stopped = StepMetrics(WORLD, {})
    take_steps(stopped, clock, *margins[:3])
    stopped.pause()
    kept = json.loads(json.dumps(stopped.unlogged()))
    clock.seconds += 1000.0  # it is away for a while
    resumed = StepMetrics(WORLD, kept)
    take_steps(resumed, clock, *margins[3:])
    resumed.pause()
    told = resumed.reduce()
    assert {**told, "peak_memory_gib": 0} == {**expected, "peak_memory_gib": 0}

    resumed.reset()
    take_steps(resumed, clock, 2.0)
    resumed.pause()
    assert resumed.reduce()["grad_norm"] == pytest.approx(2.0)


def test_the_clock_stands_still_while_others_work(one_rank, clock):
    since = StepMetrics(WORLD, {})
    take_steps(since, clock, 1.0)
    since.pause()
    clock.seconds += 60.0
    since.go_on()
    take_steps(since, clock, 1.0)
    since.pause()
    assert since.reduce()["pairs_per_second"] == pytest.approx(0.5)


def test_steps_that_loss_scaling_skipped_have_no_norm(one_rank, clock):
    since = StepMetrics(WORLD, {})
    for norm in (1.0, math.inf, math.nan, 3.0):
        since.sums.add(outcomes(1.0), torch.tensor(0.0), row_tokens=1)
        since.add_norm(torch.tensor(norm))
    clock.seconds += 1.0
    since.pause()
    assert since.reduce()["grad_norm"] == 2.0


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_what_the_ranks_had_not_logged_is_neither_lost_nor_counted_twice(ranks):
    width = len(MetricSums(WORLD).sums)
    kept = {"sums": [[float(i) for i in range(width)], [10.0] * width], "norms": [3.0, 2.0], "seconds": 5.0}
    worlds = [dataclasses.replace(WORLD, rank=rank, size=ranks) for rank in range(ranks)]
    shares = [StepMetrics(world, kept).sums.sums.tolist() for world in worlds]
    assert [sum(column) for column in zip(*shares, strict=True)] == [10.0 + i for i in range(width)]
    if ranks == 2:  # each its own, so that every addition is the one that the uninterrupted run makes
        assert shares == kept["sums"]

"""A metric is the mean over all pairs since the last logged step, however they were split into micro-batches."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch

from minimind.objective.losses import REWARD_METRICS, LossInputs, PairScores, SigmoidLoss
from minimind.ranks.world import World
from minimind.training import metrics
from minimind.training.jobs.job import BatchOutcome, TokenSums
from minimind.training.metrics import MetricSums, StepMetrics

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


JOB = SimpleNamespace(
    name="dpo",
    item="pairs",
    metrics=REWARD_METRICS,
    metric_parts={},
    token_metrics=(),
    derived=lambda means: {"margins doubled": 2 * means["rewards/margins"]},
)


def outcome(*margins: float) -> BatchOutcome:
    """Pairs with the given margins: beta 1, reference 0, a chosen row's log-prob is the margin, a rejected row's 0."""
    rows = torch.tensor([[margin, 0.0] for margin in margins])
    counts = torch.ones(len(rows), 3, dtype=torch.int64)
    policy, reference = (PairScores(sums=x, target_counts=counts) for x in (rows, torch.zeros_like(rows)))
    result = SigmoidLoss(beta=1.0, average_log_prob=False)(LossInputs(policy=policy, reference=reference))
    return BatchOutcome(losses=result.losses, metrics=result.metrics)


def test_means_are_over_pairs_not_over_micro_batches(one_rank):
    sums = MetricSums(WORLD, JOB)
    sums.add(outcome(1.0, 2.0, -3.0), torch.tensor(0.25), row_tokens=30)
    sums.add(outcome(0.0), torch.tensor(0.25), row_tokens=10)
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
    assert 0 < means["memory_gib"] <= means["peak_memory_gib"]


def test_means_over_tokens_are_over_the_tokens_of_the_batches_that_know_them(one_rank):
    job = SimpleNamespace(**{**vars(JOB), "token_metrics": ("nll", "entropy")})
    sums = MetricSums(WORLD, job)

    def known(**metrics):
        of_pairs = {name: TokenSums(sums=torch.tensor(s), counts=torch.tensor(c)) for name, (s, c) in metrics.items()}
        return dataclasses.replace(outcome(1.0, 2.0), token_metrics=of_pairs)

    zero = torch.tensor(0.0)
    sums.add(known(nll=([6.0, 1.0], [3.0, 1.0])), zero, row_tokens=8)
    sums.add(known(nll=([2.0, 9.0], [4.0, 1.0]), entropy=([8.0, 9.0], [4.0, 1.0])), zero, 9, torch.tensor([1.0, 0.0]))
    means = sums.reduce(seconds=1.0)
    assert means["nll"] == pytest.approx((6 + 1 + 2) / (3 + 1 + 4))
    assert means["entropy"] == pytest.approx(8 / 4)
    sums.reset()
    sums.add(known(nll=([0.0, 0.0], [0.0, 0.0])), zero, row_tokens=8)
    assert "nll" not in sums.reduce(seconds=1.0)  # rows without a token that counts


def test_weight_0_excludes_a_pair(one_rank):
    sums = MetricSums(WORLD, JOB)
    sums.add(outcome(1.0, 5.0), torch.tensor(0.0), row_tokens=10, weights=torch.tensor([1.0, 0.0]))
    assert sums.reduce(seconds=1.0)["rewards/margins"] == pytest.approx(1.0)


def test_a_metric_of_a_part_is_the_mean_over_that_part(one_rank):
    """Two of three items have a share; where none has, the metric does not exist."""
    job = SimpleNamespace(
        name="dpo", item="answers", metrics=("reward", "good"), metric_parts={"reward": "good"}, derived=dict
    )
    job.token_metrics = ()
    sums, zero = MetricSums(WORLD, job), torch.zeros(3)
    of_part = {"reward": torch.tensor([4.0, 0.0, 1.0]), "good": torch.tensor([1.0, 0.0, 1.0])}
    sums.add(BatchOutcome(losses=zero, metrics=of_part), zero[0], row_tokens=1)
    found = sums.reduce(seconds=1.0)
    assert found["reward"] == pytest.approx(2.5)
    assert found["good"] == pytest.approx(2 / 3)
    sums.reset()
    sums.add(BatchOutcome(losses=zero, metrics={"reward": zero, "good": zero}), zero[0], row_tokens=1)
    assert "reward" not in sums.reduce(seconds=1.0)


def test_reset_sets_all_sums_to_zero(one_rank):
    sums = MetricSums(WORLD, JOB)
    sums.add(outcome(4.0), torch.tensor(0.0), row_tokens=10)
    sums.reset()
    sums.add(outcome(1.0), torch.tensor(0.0), row_tokens=10)
    assert sums.reduce(seconds=1.0)["rewards/margins"] == pytest.approx(1.0)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def take_steps(since, clock, *margins):
    """Steps of one pair, 4 tokens and 2 seconds each, with a gradient norm equal to the margin."""
    since.resume()
    for margin in margins:
        clock.seconds += 2.0
        since.sums.add(outcome(margin), torch.tensor(0.1), row_tokens=4)
        since.add_norm(torch.tensor(margin))


def test_a_run_resumed_between_logged_steps_logs_the_same_as_an_uninterrupted_run(one_rank, clock):
    margins = (0.1, 0.7, -0.3, 1e-7, 0.2)
    whole = StepMetrics(WORLD, JOB, {})
    take_steps(whole, clock, *margins)
    whole.pause()
    expected = whole.reduce()
    assert expected["grad_norm"] == pytest.approx(sum(margins) / 5)
    assert expected["pairs_per_second"] == pytest.approx(0.5)

    stopped = StepMetrics(WORLD, JOB, {})
    take_steps(stopped, clock, *margins[:3])
    stopped.pause()
    saved = json.loads(json.dumps(stopped.unlogged()))
    clock.seconds += 1000.0  # time until the run is resumed
    resumed = StepMetrics(WORLD, JOB, saved)
    take_steps(resumed, clock, *margins[3:])
    resumed.pause()
    logged = resumed.reduce()
    memory = {"memory_gib": 0, "peak_memory_gib": 0}
    assert {**logged, **memory} == {**expected, **memory}

    resumed.reset()
    take_steps(resumed, clock, 2.0)
    resumed.pause()
    assert resumed.reduce()["grad_norm"] == pytest.approx(2.0)


def test_paused_time_is_not_counted(one_rank, clock):
    since = StepMetrics(WORLD, JOB, {})
    take_steps(since, clock, 1.0)
    since.pause()
    clock.seconds += 60.0
    since.resume()
    take_steps(since, clock, 1.0)
    since.pause()
    assert since.reduce()["pairs_per_second"] == pytest.approx(0.5)


def test_steps_skipped_by_loss_scaling_have_no_norm(one_rank, clock):
    since = StepMetrics(WORLD, JOB, {})
    since.resume()
    for norm in (1.0, math.inf, math.nan, 3.0):
        since.sums.add(outcome(1.0), torch.tensor(0.0), row_tokens=1)
        since.add_norm(torch.tensor(norm))
    clock.seconds += 1.0
    since.pause()
    assert since.reduce()["grad_norm"] == 2.0


def test_the_share_of_clipped_gradients(one_rank, clock):
    since = StepMetrics(WORLD, JOB, {}, clip=2.0)
    since.resume()
    for norm in (1.0, 2.0, 3.0, math.inf):  # the last step is skipped, and was not clipped
        since.sums.add(outcome(1.0), torch.tensor(0.0), row_tokens=1)
        since.add_norm(torch.tensor(norm))
    clock.seconds += 1.0
    since.pause()
    assert since.reduce()["grad_clipped"] == pytest.approx(1 / 3)
    unclipped = StepMetrics(WORLD, JOB, {})
    take_steps(unclipped, clock, 1.0)
    unclipped.pause()
    assert "grad_clipped" not in unclipped.reduce()


def test_other_measures_get_the_metrics_so_far_and_add_theirs(one_rank, clock):
    others = (lambda so_far: {"double": 2 * so_far["tokens_per_second"]}, lambda so_far: {"more": so_far["double"]})
    since = StepMetrics(WORLD, JOB, {}, others=others)
    take_steps(since, clock, 1.0)
    since.pause()
    logged = since.reduce()
    assert (logged["tokens_per_second"], logged["double"], logged["more"]) == (2.0, 4.0, 4.0)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_unlogged_sums_are_counted_once_on_any_number_of_ranks(ranks):
    sums = MetricSums(WORLD, JOB)
    width = len(sums.sums)
    of_ranks = [[float(i) for i in range(width)], [10.0] * width]
    saved = {"names": list(sums.names), "sums": of_ranks, "norms": [3.0, 2.0, 1.0], "seconds": 5.0}
    worlds = [dataclasses.replace(WORLD, rank=rank, size=ranks) for rank in range(ranks)]
    shares = [StepMetrics(world, JOB, saved).sums.sums.tolist() for world in worlds]
    assert [sum(column) for column in zip(*shares, strict=True)] == [10.0 + i for i in range(width)]
    if ranks == 2:  # each rank keeps its own sums, so all additions equal those of the uninterrupted run
        assert shares == saved["sums"]


def test_the_clock_stands_until_training_starts(one_rank, clock):
    since = StepMetrics(WORLD, JOB, {})
    clock.seconds += 500.0  # an evaluation at the start
    take_steps(since, clock, 1.0)
    since.pause()
    assert since.reduce()["pairs_per_second"] == pytest.approx(0.5)


def test_names_and_order_are_those_of_earlier_manifests():
    assert MetricSums(WORLD, JOB).names == (
        "loss",
        "dpo_loss",
        "aux_loss",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
    )


def test_sums_of_a_version_with_other_metrics_are_left_out(one_rank, clock):
    stopped = StepMetrics(WORLD, JOB, {})
    take_steps(stopped, clock, 5.0)
    stopped.pause()
    saved = json.loads(json.dumps(stopped.unlogged()))
    earlier = {name: value for name, value in saved.items() if name != "names"}
    other = SimpleNamespace(**{**vars(JOB), "token_metrics": ("nll",)})
    without_clipped = {**saved, "norms": saved["norms"][:2]}
    for job, unlogged in ((JOB, earlier), (other, saved), (JOB, without_clipped)):
        resumed = StepMetrics(WORLD, job, unlogged)
        take_steps(resumed, clock, 1.0)
        resumed.pause()
        assert resumed.reduce()["rewards/margins"] == pytest.approx(1.0)

"""The job contract can be met by something that is not DPO: a loss per target, whose ranks have different numbers."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.jobs.job import BatchOutcome, Job
from minimind.training.metrics import MetricSums
from minimind.training.step import train_step

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


class Batch(SimpleNamespace):
    def to_device(self, device):
        return self


class Likelihood(Job[Batch, None]):
    """Negative log-likelihood of every target."""

    name, item, metrics = "sft", "targets", ("perplexity",)

    def targets(self, batches):
        return [None] * len(batches)

    def outcome(self, batch, log_probs, target):
        return BatchOutcome(losses=-log_probs, metrics={"perplexity": (-log_probs).exp().detach()})

    def size(self, batch):
        return len(batch.target_ids)

    def derived(self, means):
        return {"twice": 2 * means["loss"]}


def test_step_and_metrics_work_for_another_job(one_rank):
    losses = []
    policy = SimpleNamespace(
        world=WORLD,
        score=lambda batch, distributions: (batch.log_probs, torch.zeros(())),
        backward=lambda loss, last: losses.append(float(loss)),
        step=lambda: None,
    )
    # Negative log-likelihoods 1; 2, 3, 6: means 1 and 11/3, weighted 1/4 and 3/4: in all the mean over four targets.
    batches = [
        Batch(log_probs=-torch.tensor(values), target_ids=values, row_tokens=10) for values in ([1.0], [2.0, 3.0, 6.0])
    ]
    job = Likelihood()
    sums = MetricSums(WORLD, job)
    train_step(policy, job, batches, sums, Watch())
    assert sum(losses) == 3.0
    metrics = sums.reduce(seconds=2.0)
    assert metrics["sft_loss"] == metrics["loss"] == 3.0
    assert metrics["targets_per_second"] == 2.0
    assert metrics["twice"] == 6.0
    assert abs(metrics["perplexity"] - float(torch.tensor([1.0, 2.0, 3.0, 6.0]).exp().mean())) < 1e-4


def test_a_job_weights_the_micro_batches_of_its_step():
    """A rank with 4 of 10 targets: its mean of ranks' sums is right if the weights add up to 4 / 5."""
    job = Likelihood()
    batches = [Batch(target_ids=[1.0]), Batch(target_ids=[2.0, 3.0, 6.0])]
    assert job.weights(batches) == [0.25, 0.75]
    job.weights = lambda batches: [0.2, 0.6]
    losses = []
    policy = SimpleNamespace(
        world=WORLD,
        score=lambda batch, distributions: (-torch.tensor(batch.target_ids), torch.zeros(())),
        backward=lambda loss, last: losses.append(round(float(loss), 6)),
        step=lambda: None,
    )
    for batch in batches:
        batch.row_tokens = 10
    train_step(policy, job, batches, MetricSums(WORLD, job), Watch())
    assert losses == [0.2, 2.2]

"""Means over a global batch: the same however it is split, given to the loss one step later, kept on resume."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from minimind.objective.losses import PairLosses, SigmoidLoss
from minimind.objective.rows import ReferenceScores
from minimind.ranks.world import World
from minimind.training.events import Step
from minimind.training.jobs.dpo import DPOJob
from minimind.training.listeners.batch_statistics import BatchStatistics

pytestmark = pytest.mark.usefixtures("one_rank")
WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def statistics(*names):
    return BatchStatistics(names=names, world=WORLD)


def test_means_are_over_all_micro_batches_of_a_step():
    one = statistics("a", "b")
    assert one.means == {}
    one.add({"a": torch.tensor([1.0, 2.0, 6.0]), "b": torch.tensor([0.0, 0.0, 3.0]), "c": torch.zeros(3)})
    one.add({"a": torch.tensor([7.0]), "b": torch.tensor([1.0])})
    assert one.means == {}  # known only when the step is done
    one.on_step(Step(step=1, last=False))
    assert {name: mean.item() for name, mean in one.means.items()} == {"a": 4.0, "b": 1.0}
    one.add({"a": torch.tensor([10.0]), "b": torch.tensor([0.0])})
    one.on_step(Step(step=2, last=False))
    assert one.means["a"].item() == 10.0


def test_the_state_passes_through_json_bit_for_bit():
    one, other = statistics("a"), statistics("a")
    one.add({"a": torch.tensor([0.1, 0.2, 0.4])})
    one.on_step(Step(step=1, last=False))
    other.restore(json.loads(json.dumps(one.state())))
    assert other.means["a"].item() == one.means["a"].item()
    assert other.means["a"].dtype == torch.float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baseline(SigmoidLoss):
    """Margin minus the mean margin of the previous global step."""

    name: ClassVar[str] = "baseline"
    statistics: ClassVar[tuple[str, ...]] = ("rewards/margins",)

    def __call__(self, policy, reference, statistics):
        result = super().__call__(policy, reference, statistics)
        baseline = statistics.get("rewards/margins", torch.zeros(()))
        return PairLosses(losses=result.metrics["rewards/margins"] - baseline, metrics=result.metrics)


def test_a_loss_gets_the_means_of_the_step_before():
    one = statistics("rewards/margins")
    reference = SimpleNamespace()
    job = DPOJob(loss=Baseline(beta=1.0), average_log_prob=False, reference=reference, statistics=one)
    batch = SimpleNamespace(target_counts=torch.tensor([[0, 1, 1]]), num_pairs=1)
    target = ReferenceScores(sums=torch.zeros(1, 2))

    def loss(margin):
        return job.outcome(batch, torch.tensor([margin, 0.0]), target).losses.item()

    assert loss(3.0) == 3.0
    assert loss(5.0) == 5.0  # the same step: nothing is known yet
    one.on_step(Step(step=1, last=False))
    assert loss(5.0) == 1.0  # 5 minus the mean of 3 and 5
    with torch.no_grad():
        assert loss(100.0) == 96.0  # an evaluation uses the means and does not change them
    one.on_step(Step(step=2, last=True))
    assert loss(5.0) == 0.0

"""Running means over global batches: the same however a batch is split, given one step later, kept on resume."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from minimind.objective.losses import build_objective
from minimind.objective.rows import ReferenceScores
from minimind.ranks.world import World
from minimind.training.events import Step
from minimind.training.jobs.dpo import DPOJob, PairTargets
from minimind.training.listeners.batch_statistics import BatchStatistics

pytestmark = pytest.mark.usefixtures("one_rank")
WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
STEP = Step(step=1, last=False)


def statistics(**weights_of_past):
    return BatchStatistics(weights_of_past=weights_of_past, world=WORLD)


def means(one):
    return {name: mean.item() for name, mean in one.means.items()}


def test_means_are_over_all_micro_batches_of_a_step():
    one = statistics(a=0, b=0)
    assert one.means == {}
    one.add({"a": torch.tensor([1.0, 2.0, 6.0]), "b": torch.tensor([0.0, 0.0, 3.0]), "c": torch.zeros(3)})
    one.add({"a": torch.tensor([7.0]), "b": torch.tensor([1.0])})
    assert one.means == {}  # known only when the step is done
    one.on_step(STEP)
    assert means(one) == {"a": 4.0, "b": 1.0}
    one.add({"a": torch.tensor([10.0]), "b": torch.tensor([0.0])})
    one.on_step(STEP)
    assert means(one)["a"] == 10.0


def test_earlier_batches_keep_their_weight():
    """Batches of means 1, 2, 6, 7; all count the same: 1, 3/2, 3, 4. With 0.5: 1, 3/2, 15/4, 43/8."""
    one = statistics(all=1.0, half=0.5, last=0.0)
    found = []
    for value in (1.0, 2.0, 6.0, 7.0):
        one.add(dict.fromkeys(("all", "half", "last"), torch.tensor([value])))
        one.on_step(STEP)
        found.append(list(means(one).values()))
    assert found == [pytest.approx(row) for row in ([1, 1, 1], [1.5, 1.5, 2], [3, 3.75, 6], [4, 5.375, 7])]


def test_a_resumed_run_continues_bit_for_bit():
    one, other = statistics(a=1.0, b=0.9), statistics(a=1.0, b=0.9)
    assert one.state() == {}

    def step(listener, number):
        listener.add({"a": torch.tensor([0.1, 0.2 * number]), "b": torch.tensor([0.4, 0.3 / number])})
        listener.on_step(STEP)

    for number in (1, 2, 3):
        step(one, number)
    other.restore(json.loads(json.dumps(one.state())))
    assert means(other) == means(one)
    for number in (4, 5):
        step(one, number)
        step(other, number)
    assert means(other) == means(one)
    assert other.means["a"].dtype == torch.float32


def test_a_loss_gets_the_means_of_the_steps_before():
    """BCO's shift is the mean reward of both answers: beta 1, rewards m and 0."""
    one = statistics(**{"bco_pair.reward": 1.0})
    objective = build_objective("bco_pair", {"beta": 1.0, "average_log_prob": False})
    job = DPOJob(objective=objective, reference=SimpleNamespace(), statistics=one)
    batch = SimpleNamespace(target_counts=torch.tensor([[0, 1, 1]]), num_pairs=1, scores=None, labels=None, halves=None)
    target = PairTargets(reference=ReferenceScores(sums=torch.zeros(1, 2)))

    def loss(reward):
        return job.outcome(batch, torch.tensor([reward, 0.0]), target).losses.item()

    def expected(reward, shift):
        rewards = torch.tensor([reward - shift, shift])
        return pytest.approx(-torch.nn.functional.logsigmoid(rewards).sum().item(), rel=1e-6)

    assert loss(3.0) == expected(3.0, 0.0)
    assert loss(5.0) == expected(5.0, 0.0)  # the same step: nothing is known yet
    one.on_step(STEP)
    assert loss(5.0) == expected(5.0, 2.0)  # (3 + 5) / 2 / 2
    with torch.no_grad():
        assert loss(100.0) == expected(100.0, 2.0)  # an evaluation uses the means and does not change them
    one.on_step(STEP)
    assert means(one)["bco_pair.reward"] == pytest.approx((2.0 + 2.5) / 2)

"""Kept items: the sums are those of any evaluation, and the items come in the order of the held-out set."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minimind.ranks.world import World
from minimind.training import kept_items
from minimind.training.jobs.job import BatchOutcome
from minimind.training.kept_items import KeptItems
from minimind.training.metrics import MetricSums

pytestmark = pytest.mark.usefixtures("one_rank")
JOB = SimpleNamespace(
    name="dpo", item="pairs", metrics=("reward",), token_metrics=(), metric_parts={}, derived=lambda means: {}
)


def rank_of(size, rank):
    return World(rank=rank, local_rank=rank, size=size, device=torch.device("cpu"))


def outcome(*rewards):
    values = torch.tensor(rewards)
    return BatchOutcome(losses=values, metrics={"reward": values}, values={"length": 10 * values})


def test_the_order_is_that_of_the_set_whatever_the_ranks(monkeypatch):
    # Seven pairs in batches of 2 on two ranks: (0, 1), (4, 5) and (2, 3), (6).
    ranks = [KeptItems(rank_of(2, rank), JOB, ("length", "reward")) for rank in (0, 1)]
    for sums, batches in zip(ranks, ([(0, 1), (4, 5)], [(2, 3), (6,)]), strict=True):
        for batch in batches:
            sums.add(outcome(*map(float, batch)), torch.zeros(()), 1, torch.ones(len(batch), dtype=torch.float64))
    parts = []
    monkeypatch.setattr(kept_items, "gather", lambda world, own: parts.append(own) or [own])
    for sums in ranks:
        sums.kept()
    monkeypatch.setattr(kept_items, "gather", lambda world, own: parts)
    assert ranks[0].kept().tolist() == [[0, 10, 20, 30, 40, 50, 60], [0, 1, 2, 3, 4, 5, 6]]


def test_items_that_fill_a_round_are_not_kept_and_the_sums_are_the_usual_ones():
    sums, usual = KeptItems(rank_of(1, 0), JOB, ("reward",)), MetricSums(rank_of(1, 0), JOB)
    for one in (sums, usual):
        one.add(outcome(1.0, 3.0), torch.zeros(()), 4)
        one.add(outcome(9.0), torch.zeros(()), 0, torch.zeros(1, dtype=torch.float64))
    np.testing.assert_array_equal(sums.kept(), [[1.0, 3.0]])
    assert torch.equal(sums.sums, usual.sums)

"""A job over tokens: losses, metrics, and weights that make a step's loss the mean over the tokens of all ranks."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minimind.data.packs import pack
from minimind.data.table import PreferencePair
from minimind.objective.token_mean import TokenMean
from minimind.ranks.world import World
from minimind.training.jobs import tokens
from minimind.training.jobs.tokens import TokenJob

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def row(count, index=0):
    """A row of 8 tokens, of which the last `count` count, beside a row of one token."""
    ids = np.arange(3, 11, dtype=np.int32)
    mask = np.array([0] * (8 - count) + [1] * count, dtype=np.uint8)
    nothing = np.zeros(1, np.uint8)
    return PreferencePair(chosen=ids, rejected=ids[:1], chosen_mask=mask, rejected_mask=nothing, prefix=1, index=index)


def job(mean="tokens", world=WORLD):
    return TokenJob(name="sft", examples="conversations", objective=TokenMean(mean=mean), world=world)


def test_an_item_is_a_token():
    batch = pack([row(3), row(2)])
    assert job().size(batch) == 5
    assert batch.row_tokens == 16
    outcome = job().outcome(batch, torch.arange(-5.0, 0.0), None)
    assert outcome.losses.tolist() == [5.0, 4.0, 3.0, 2.0, 1.0]
    assert outcome.token_metrics == {}
    assert job().item_weights(batch, torch.tensor([1.0, 0.0])).tolist() == [1, 1, 1, 0, 0]


def test_distributions_become_metrics():
    columns = torch.tensor([[-1.0, 0.5, 1.0], [-2.0, 1.5, 0.0]], requires_grad=True)
    outcome = job().outcome(pack([row(2)]), columns, None)
    assert outcome.losses.tolist() == [1.0, 2.0]
    found = {name: (of.sums.tolist(), of.counts.tolist()) for name, of in outcome.token_metrics.items()}
    assert found == {"entropy": ([0.5, 1.5], [1, 1]), "token_accuracy": ([1, 0], [1, 1])}
    assert not any(of.sums.requires_grad or of.counts.requires_grad for of in outcome.token_metrics.values())


def test_weights_are_shares_of_the_tokens_of_all_ranks(monkeypatch):
    """This rank has 3 + 2 of 15 tokens, the other 10; the mean over ranks halves."""
    monkeypatch.setattr(tokens, "all_reduce", lambda own: own + 10)
    world = SimpleNamespace(size=2, device=torch.device("cpu"))
    batches = [pack([row(3)]), pack([row(2)])]
    assert [float(one) for one in job(world=world).weights(batches)] == pytest.approx([6 / 15, 4 / 15])
    assert all(one.dtype == torch.float32 for one in job(world=world).weights(batches))


def test_micro_batches_count_the_same_in_minimind_s_way():
    assert job("micro_batch").weights([pack([row(3)]), pack([row(1)])]) == [0.5, 0.5]


def test_the_perplexity_follows_from_the_loss_without_the_auxiliary_one():
    assert job().derived({"sft_loss": 2.0, "loss": 5.0}) == {"perplexity": math.exp(2.0)}
    assert math.isfinite(job().derived({"sft_loss": 1e9})["perplexity"])

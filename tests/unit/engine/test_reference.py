"""The live reference: how micro-batches are grouped into forwards, and what a mismatch says. No engine is needed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minimind.data.packs import pack, pad
from minimind.data.table import PreferencePair
from minimind.engine import reference as module
from minimind.engine.reference import LiveReference
from minimind.ranks.world import World


def pair(index):
    tokens, mask = np.arange(3, 9, dtype=np.int32), np.array([0, 0, 0, 1, 1, 1], dtype=np.uint8)
    other = tokens.copy()
    other[4:] += 10
    return PreferencePair(chosen=tokens, rejected=other, chosen_mask=mask, rejected_mask=mask, prefix=4, index=index)


@pytest.fixture
def made():
    """A reference that gives its n-th target of a forward the log-prob -n; `forwards` has the indices of each."""

    def make(batches_per_forward):
        reference = LiveReference.__new__(LiveReference)
        reference.batches_per_forward = batches_per_forward
        forwards = []

        def log_probs(batch):
            forwards.append(batch.indices)
            return -torch.arange(1.0, len(batch.target_ids) + 1)

        reference.log_probs = log_probs
        return reference, forwards

    return make


# Targets of a pair: 1 in the prefix (shared), 2 of chosen, 2 of rejected.
FIRST = [[-1.0 - 2 - 3, -1.0 - 4 - 5]]
SECOND = [[-6.0 - 7 - 8, -6.0 - 9 - 10]]


def test_packs_are_joined_into_one_forward(made):
    reference, forwards = made(2)
    scores = reference.score([pack([pair(1)]), pack([pair(2)]), pack([pair(3)])])
    assert forwards == [(1, 2), (3,)]
    assert [one.sums.tolist() for one in scores] == [FIRST, SECOND, FIRST]
    assert all(one.per_token is None for one in scores)


def test_padded_batches_are_not_joined(made):
    reference, forwards = made(2)
    scores = reference.score([pad([pair(1)]), pad([pair(2)])])
    assert forwards == [(1,), (2,)]
    assert [one.sums.tolist() for one in scores] == [FIRST, FIRST]


def test_log_probs_of_tokens_are_given_if_asked_for(made):
    reference, _ = made(2)
    one, other = reference.score([pack([pair(1)]), pack([pair(2)])], per_token=True)
    assert one.per_token.tolist() == [-1.0, -2.0, -3.0, -4.0, -5.0]
    assert other.per_token.tolist() == [-6.0, -7.0, -8.0, -9.0, -10.0]


def test_a_mismatch_names_place_and_start_value(made):
    reference, _ = made(1)
    message = reference.mismatch(0.25, 7, "a.jsonl, line 8", 0.69314)
    assert "differ by 0.25 in a row's mean log-prob (a.jsonl, line 8)" in message
    assert "the loss would not start at 0.6931" in message
    assert "would not start" not in reference.mismatch(0.25, 7, "a.jsonl, line 8", None)


@pytest.mark.parametrize(
    ("size", "zero", "expected"),
    [
        (1, {}, "whole model"),  # a rank without peers holds all weights
        (2, {}, "blocks"),
        (1, {"offload_param": {"device": "cpu"}}, "blocks"),
        (2, {"offload_param": {"device": "nvme"}}, "nothing"),  # DeepSpeed reads only a few tensors at a time
    ],
)
def test_weights_that_are_gathered_together(monkeypatch, size, zero, expected):
    monkeypatch.setattr(module, "transformer_blocks", lambda model: ["block"])
    scorer = SimpleNamespace(model=None)
    world = World(rank=0, local_rank=0, size=size, device=torch.device("cpu"))
    resolved = SimpleNamespace(values={"zero_optimization": {"stage": 3, **zero}})
    found = module._gather_units(scorer, resolved, world)
    assert found == {"whole model": [scorer], "blocks": ["block"], "nothing": []}[expected]

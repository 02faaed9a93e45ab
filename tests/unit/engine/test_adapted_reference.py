"""The reference within a policy with adapters: computed without them, in eval mode, and the policy is as it was."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from minimind.config import DPOConfig
from minimind.data.packs import pack
from minimind.engine.adapted_reference import AdaptedReference
from minimind.engine.scorer import PairScorer
from tests.unit.engine.test_reference import pair
from tests.unit.weights.adapted import dense, plain, spec_of, trained


class Engine(nn.Module):
    """The part of DeepSpeed's engine that the reference uses."""

    def __init__(self, module: PairScorer) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch):
        assert not torch.is_grad_enabled()
        return self.module(batch)


def test_the_scores_are_those_of_the_base():
    base = dense()
    model, _ = trained(base, spec_of(base))
    engine = Engine(PairScorer(model)).train()
    batches = [pack([pair(1)]), pack([pair(2)])]
    with torch.no_grad():
        before = [engine(batch)[0] for batch in batches]
        expected = [PairScorer(plain(base))(batch)[0] for batch in batches]
    reference = AdaptedReference(SimpleNamespace(engine=engine, world=None), DPOConfig())
    scores = reference.score(batches, per_token=True)
    for one, log_probs, old in zip(scores, expected, before, strict=True):
        torch.testing.assert_close(one.per_token, log_probs)
        assert not torch.allclose(one.per_token, old)
    assert engine.training
    with torch.no_grad():
        assert all(torch.equal(engine(batch)[0], old) for batch, old in zip(batches, before, strict=True))


def test_the_policy_keeps_its_mode():
    base = dense()
    model, _ = trained(base, spec_of(base))
    engine = Engine(PairScorer(model)).eval()
    AdaptedReference(SimpleNamespace(engine=engine, world=None), DPOConfig()).score([pack([pair(1)])])
    assert not engine.training

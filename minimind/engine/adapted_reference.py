"""The reference of a policy with adapters: its own model, as it was before training.

policy, micro-batches of a global step -> adapters off (or the start adapter on) -> ReferenceScores

It needs no engine and no copy of the weights. Under ZeRO-3 a forward gathers each block once, as that of a reference of
its own does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minimind.config import JobConfig
from minimind.data.packs import PairBatch
from minimind.engine.policy import Policy
from minimind.engine.reference import ModelReference
from minimind.model.adapters import reference_adapters


class AdaptedReference(ModelReference):
    """The base of a policy with adapters.

    Args:
        policy: the policy.
        config: the run's settings.
    """

    def __init__(self, policy: Policy, config: JobConfig) -> None:
        super().__init__(config)
        self._policy = policy
        self.world = policy.world

    @torch.no_grad()
    def log_probs(self, batch: PairBatch) -> Tensor:
        engine = self._policy.engine
        trains = engine.training
        engine.eval()
        try:
            with reference_adapters(engine.module.model):
                log_probs, _ = engine(batch)
        finally:
            engine.train(trains)
        return log_probs

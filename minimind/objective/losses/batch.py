"""Losses of the global batch: a pair's loss depends on the other pairs of its global step, on all ranks.

They get all pairs at once (`Need.GLOBAL_BATCH`), so they are written as if a global batch were one micro-batch.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from minimind.objective.losses.bases import logistic, margins
from minimind.objective.losses.contract import (
    REWARD_METRICS,
    LossInputs,
    Need,
    PairLosses,
    PreferenceLoss,
    reward_metrics,
)
from minimind.objective.losses.options import option
from minimind.objective.losses.registry import register_loss

_ALL_PAIRS = frozenset({Need.REFERENCE, Need.GLOBAL_BATCH})
# Smallest beta of beta_dpo, as in the authors' code: a batch of badly lost pairs would make it negative.
_SMALLEST_BETA = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransportLoss(PreferenceLoss):
    """A logistic loss of the differences between two sorted lists: quantile by quantile, not pair by pair."""

    needs: ClassVar[frozenset[Need]] = _ALL_PAIRS

    beta: float = option(0.1, "a larger value keeps the policy closer to the reference", above=0, follows_model=True)
    label_smoothing: float = option(0.0, "probability that a pair's label is wrong", low=0, below=0.5)

    @abc.abstractmethod
    def lists(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """Two lists, (N,) each, of which every quantile of the first should be the larger one."""

    def start_value(self) -> float:
        """Both lists are the same, so ln 2."""
        return float(logistic(torch.zeros((), dtype=torch.float64), self.label_smoothing))

    def __call__(self, inputs: LossInputs) -> PairLosses:
        larger, smaller = self.lists(inputs)
        # Sorting has a gradient: it goes back to the pair that is at that quantile.
        quantiles, order = larger.sort()
        losses = logistic(self.beta * (quantiles - smaller.sort().values), self.label_smoothing)
        rewards = self.beta * inputs.ratios(self.average_log_prob)
        return PairLosses(
            # Each pair gets the loss of the quantile at which it is in the first list.
            losses=losses[order.argsort()],
            metrics=reward_metrics(inputs.policy, rewards, self.average_log_prob),
        )


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class AOTLoss(TransportLoss):
    """AOT for pairs (Melnyk et al., 2024, arXiv 2406.05882).

        -log sigmoid(beta * (sorted margins of the policy - sorted margins of the reference))

    Prefers chosen answers in distribution: every quantile of the policy's margins should exceed the reference's.

    The k-th smallest margin log p_chosen - log p_rejected of the policy is compared with the k-th smallest of the
    reference, in the global batch. TRL sorts within each micro-batch. It starts at ln 2.
    """

    name: ClassVar[str] = "aot"

    def lists(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        assert inputs.reference is not None
        average = self.average_log_prob
        return margins(inputs.policy.rows(average)), margins(inputs.reference.rows(average))


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class AOTUnpairedLoss(TransportLoss):
    """AOT for unpaired answers (Melnyk et al., 2024, arXiv 2406.05882).

        -log sigmoid(beta * (sorted chosen - sorted rejected))

    As `aot`, where chosen and rejected do not belong together: rewards of all chosen answers against all rejected ones.

    The k-th smallest log-ratio of the chosen answers is compared with the k-th smallest of the rejected ones, in the
    global batch. It starts at ln 2.
    """

    name: ClassVar[str] = "aot_unpaired"

    def lists(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        ratios = inputs.ratios(self.average_log_prob)
        return ratios[:, 0], ratios[:, 1]


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class BetaDPOLoss(PreferenceLoss):
    """beta-DPO (Wu et al., 2024, arXiv 2407.08639, batch-level beta).

        -log sigmoid(b * (chosen - rejected)), b = beta * (1 + alpha * (mean margin of the batch - running mean))

    For pairs of changing quality: batches with large margins get a larger beta, and hold the policy back.

    b has no gradient and is at least 0.001. The running mean is over the global batches before this one, with a weight
    `momentum` of the past, and absent in the first, where b is beta. The paper's filter, which drops a random fifth of
    the batch, is not done. It starts at ln 2.
    """

    name: ClassVar[str] = "beta_dpo"
    needs: ClassVar[frozenset[Need]] = _ALL_PAIRS
    metrics: ClassVar[tuple[str, ...]] = (*REWARD_METRICS, "beta")

    beta: float = option(0.1, "a larger value keeps the policy closer to the reference", above=0, follows_model=True)
    alpha: float = option(0.6, "how much a batch's mean margin changes beta", low=0)
    momentum: float = option(0.9, "weight of earlier batches in the running mean", low=0, below=1)

    @property
    def statistics(self) -> Mapping[str, float]:
        return {"margin": self.momentum}

    def start_value(self) -> float:
        """All margins are 0, so ln 2."""
        return float(logistic(torch.zeros((), dtype=torch.float64)))

    def __call__(self, inputs: LossInputs) -> PairLosses:
        ratios = inputs.ratios(self.average_log_prob)
        found = margins(ratios)
        # Detached: beta follows the data and is not trained, as in the paper.
        mean = found.detach().mean()
        # In the first batch there is no past: its own mean stands in, and b is beta.
        usual = inputs.statistics.get("margin", mean)
        beta = (self.beta * (1 + self.alpha * (mean - usual))).clamp_min(_SMALLEST_BETA)
        return PairLosses(
            losses=logistic(beta * found),
            metrics={
                **reward_metrics(inputs.policy, self.beta * ratios, self.average_log_prob),
                "beta": beta.expand_as(found),
            },
            statistics={"margin": found.detach()},
        )

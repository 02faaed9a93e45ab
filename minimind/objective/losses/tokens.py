"""Losses of more than a row's summed log-prob: parts of answers, and distributions of all tokens."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from minimind.objective.losses.bases import RatioLoss, logistic, margins
from minimind.objective.losses.contract import (
    REWARD_METRICS,
    LossInputs,
    Need,
    PairLosses,
    PairScores,
    reward_metrics,
)
from minimind.objective.losses.options import fixed, option
from minimind.objective.losses.registry import register_loss
from minimind.objective.rows import head_sums, row_means


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class LDDPOLoss(RatioLoss):
    """LD-DPO (Liu et al., 2024, arXiv 2409.06411).

        -log sigmoid(beta * (chosen - rejected)), log-probs of head + ld_alpha * tail

    Against answers that grow longer: of the longer answer, tokens beyond the length of the shorter one count less.

    The head of an answer is as many of its first tokens as the shorter answer has; the shorter one has no tail.
    ld_alpha 1 is DPO of sums, 0 leaves the tail out. It starts at ln 2.
    """

    name: ClassVar[str] = "ld_dpo"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.REFERENCE, Need.PER_TOKEN})

    average_log_prob: bool = fixed(False)
    ld_alpha: float = option(0.5, "weight of tokens beyond the length of the shorter answer", low=0, high=1)

    def of_ratios(self, ratios: Tensor) -> Tensor:
        return logistic(self.beta * margins(ratios))

    def __call__(self, inputs: LossInputs) -> PairLosses:
        assert inputs.reference is not None
        ratios = self._rows(inputs.policy) - self._rows(inputs.reference)
        metrics = reward_metrics(inputs.policy, self.rewards(ratios), self.average_log_prob)
        return PairLosses(losses=self.of_ratios(ratios), metrics=metrics)

    def _rows(self, scores: PairScores) -> Tensor:
        assert scores.per_token is not None
        return self.ld_alpha * scores.sums + (1 - self.ld_alpha) * head_sums(scores.per_token, scores.target_counts)


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class WPOLoss(RatioLoss):
    """WPO (Zhou et al., 2024, arXiv 2406.11827, equation 2 with sampled alignment).

        -w_chosen * w_rejected * log sigmoid(beta * (chosen - rejected)), w = exp(mean of log p - log sum of squared p)

    For pairs of other models: those that the policy itself could have written count more.

    p is the policy's probability of each token of an answer; the sum goes over all tokens of the vocabulary at its
    position, so that a w of 1 is that of an answer sampled from the policy. w has no gradient. The start depends on w.
    """

    name: ClassVar[str] = "wpo"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.REFERENCE, Need.COLLISIONS})
    metrics: ClassVar[tuple[str, ...]] = (*REWARD_METRICS, "weight")

    def of_ratios(self, ratios: Tensor) -> Tensor:
        return logistic(self.beta * margins(ratios))

    def start_value(self) -> None:
        """ln 2 times the weight of the pair."""
        return None

    def __call__(self, inputs: LossInputs) -> PairLosses:
        result = super().__call__(inputs)
        policy = inputs.policy
        assert policy.collision_sums is not None
        aligned = row_means(policy.sums.detach() - policy.collision_sums, policy.target_counts)
        # exp of the sum of both means is the product of the two weights.
        weights = aligned.sum(1).exp()
        return PairLosses(losses=weights * result.losses, metrics={**result.metrics, "weight": weights})

"""Losses of more than a row's summed log-prob: parts of answers."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from minimind.objective.losses.bases import RatioLoss, logistic, margins
from minimind.objective.losses.contract import LossInputs, Need, PairLosses, PairScores, reward_metrics
from minimind.objective.losses.options import fixed, option
from minimind.objective.losses.registry import register_loss
from minimind.objective.rows import head_sums


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

"""Losses that use how much better the chosen answer is: the scores that the data gives to both answers."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

from torch import Tensor

from minimind.objective.losses.bases import logistic, margins
from minimind.objective.losses.contract import LossInputs, Need, PairLosses, PreferenceLoss, reward_metrics
from minimind.objective.losses.options import fixed, option
from minimind.objective.losses.registry import register_loss

_SCORED = frozenset({Need.REFERENCE, Need.SCORES})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredLoss(PreferenceLoss):
    """A loss of the scaled margin and of the gap: the score of chosen minus that of rejected."""

    needs: ClassVar[frozenset[Need]] = _SCORED

    beta: float = option(0.1, "a larger value keeps the policy closer to the reference", above=0)

    @abc.abstractmethod
    def of_gaps(self, scaled: Tensor, gaps: Tensor) -> Tensor:
        """(N,) margins times beta and (N,) gaps -> (N,) losses."""

    def start_value(self) -> None:
        """It depends on the gap of the pair."""
        return None

    def __call__(self, inputs: LossInputs) -> PairLosses:
        assert inputs.scores is not None
        rewards = self.beta * inputs.ratios(self.average_log_prob)
        return PairLosses(
            losses=self.of_gaps(margins(rewards), margins(inputs.scores).to(rewards.dtype)),
            metrics=reward_metrics(inputs.policy, rewards, self.average_log_prob),
        )


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class ODPOLoss(ScoredLoss):
    """ODPO (Amini et al., 2024, DPO with an offset, arXiv 2402.10571).

        -log sigmoid(beta * (chosen - rejected) - alpha * log(gap)), gap = score of chosen - score of rejected

    For pairs with scores: a chosen answer that is much better must win by more.

    The offset is alpha times the logarithm of the gap, as in the paper's experiments, so every gap must be above 0.
    With alpha 0 or a gap of 1 it is DPO.
    """

    name: ClassVar[str] = "odpo"
    needs: ClassVar[frozenset[Need]] = _SCORED | {Need.SCORE_GAPS}

    alpha: float = option(1.0, "how much the gap of the scores counts", low=0)

    def of_gaps(self, scaled: Tensor, gaps: Tensor) -> Tensor:
        return logistic(scaled - self.alpha * gaps.log())


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class REBELLoss(ScoredLoss):
    """REBEL (Gao et al., 2024, arXiv 2404.16767).

        (beta * (chosen - rejected) - gap)^2, gap = score of chosen - score of rejected

    For pairs with scores of a reward model: the margin is regressed to the gap, so that beta sets its scale.

    beta is 1 / eta of the paper, whose answers are samples of the reference. A pair whose rejected answer has the
    higher score is no error: its margin is regressed to a gap below 0.
    """

    name: ClassVar[str] = "rebel"

    average_log_prob: bool = fixed(False)

    def of_gaps(self, scaled: Tensor, gaps: Tensor) -> Tensor:
        return (scaled - gaps) ** 2

"""Losses that say for each answer, not only for their difference, where its log-ratio to the reference should go."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from minimind.objective.losses.bases import RatioLoss, logistic, margins
from minimind.objective.losses.contract import LossInputs, PairLosses, reward_metrics
from minimind.objective.losses.options import fixed, option
from minimind.objective.losses.registry import register_loss


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class NCAPairLoss(RatioLoss):
    """NCA for pairs (Chen et al., 2024, arXiv 2402.05369).

        -log sigmoid(beta * chosen) - log sigmoid(-beta * chosen) / 2 - log sigmoid(-beta * rejected) / 2

    Keeps the likelihood of chosen answers from falling, as it does under DPO.

    It starts at 2 ln 2.
    """

    name: ClassVar[str] = "nca_pair"

    def of_ratios(self, ratios: Tensor) -> Tensor:
        rewards = self.beta * ratios
        return logistic(rewards[:, 0]) + (logistic(-rewards)).sum(1) / 2


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class BCOPairLoss(RatioLoss):
    """BCO for pairs (Jung et al., 2024, arXiv 2404.04656).

        -log sigmoid(beta * chosen - shift) - log sigmoid(-(beta * rejected - shift))

    A classifier of good and bad answers; the quality term of MPO.

    The shift is the mean reward of both answers over all global steps before this one, 0 in the first. TRL 1.16 has
    no shift, which `reward_shift` 0 reproduces. It starts at 2 ln 2.
    """

    name: ClassVar[str] = "bco_pair"

    reward_shift: bool = option(True, "1: subtract the running mean of rewards, as in the paper; 0: do not, as in TRL")

    @property
    def statistics(self) -> Mapping[str, float]:
        return {"reward": 1.0} if self.reward_shift else {}

    def of_ratios(self, ratios: Tensor) -> Tensor:
        return self._of_rewards(self.beta * ratios)

    def _of_rewards(self, rewards: Tensor) -> Tensor:
        return logistic(rewards[:, 0]) + logistic(-rewards[:, 1])

    def __call__(self, inputs: LossInputs) -> PairLosses:
        rewards = self.beta * inputs.ratios(self.average_log_prob)
        # Absent in the first step: all rewards are 0 before it.
        shift = inputs.statistics.get("reward", torch.zeros_like(rewards[0, 0]))
        return PairLosses(
            losses=self._of_rewards(rewards - shift),
            metrics=reward_metrics(inputs.policy, rewards, self.average_log_prob),
            statistics={"reward": rewards.detach().mean(1)} if self.reward_shift else {},
        )


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class SPPOHardLoss(RatioLoss):
    """SPPO with hard labels (Wu et al., 2024, arXiv 2405.00675, equation 4.7 with probabilities 1 and 0).

        (chosen - 1 / (2 beta))^2 + (rejected + 1 / (2 beta))^2

    Self-play: pairs are answers of the policy itself, judged, round after round.

    It starts at 1 / (2 beta^2).
    """

    name: ClassVar[str] = "sppo_hard"

    average_log_prob: bool = fixed(False)
    # A target, no scale of the margin: the paper's, whatever the model's default for DPO is.
    beta: float = option(0.1, "a larger value aims at a smaller margin", above=0)

    def of_ratios(self, ratios: Tensor) -> Tensor:
        return _distance(ratios, 1 / (2 * self.beta))


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class CalDPOLoss(RatioLoss):
    """Cal-DPO (Xiao et al., 2024, arXiv 2412.14516).

        -log sigmoid(chosen - rejected) + (chosen - 1 / (2 beta))^2 + (rejected + 1 / (2 beta))^2

    Calibrates implicit rewards to the scale of true ones, so that chosen answers become likelier.

    It starts at ln 2 + 1 / (2 beta^2). beta does not scale the margin, as in the authors' code.
    """

    name: ClassVar[str] = "cal_dpo"

    average_log_prob: bool = fixed(False)
    # A target, no scale of the margin: the paper's, whatever the model's default for DPO is.
    beta: float = option(0.1, "a larger value aims at a smaller margin", above=0)

    def of_ratios(self, ratios: Tensor) -> Tensor:
        return logistic(margins(ratios)) + _distance(ratios, 1 / (2 * self.beta))


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class APOZeroLoss(RatioLoss):
    """APO-zero (D'Oosterlinck et al., 2024, arXiv 2408.06266, equation 7).

        1 - sigmoid(beta * chosen) + sigmoid(beta * rejected)

    For chosen answers that are better than the model's own: they become likelier, rejected ones less likely.

    It starts at 1.
    """

    name: ClassVar[str] = "apo_zero"

    def of_ratios(self, ratios: Tensor) -> Tensor:
        rewards = self.beta * ratios
        # 1 - sigmoid(x) = sigmoid(-x), without cancellation.
        return torch.sigmoid(-rewards[:, 0]) + torch.sigmoid(rewards[:, 1])


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class APODownLoss(RatioLoss):
    """APO-down (D'Oosterlinck et al., 2024, arXiv 2408.06266, equation 8).

        sigmoid(beta * chosen) + 1 - sigmoid(beta * (chosen - rejected))

    For chosen answers that are worse than the model's own: both become less likely, rejected ones more so.

    It starts at 1.
    """

    name: ClassVar[str] = "apo_down"

    def of_ratios(self, ratios: Tensor) -> Tensor:
        rewards = self.beta * ratios
        return torch.sigmoid(rewards[:, 0]) + torch.sigmoid(-margins(rewards))


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPOPLoss(RatioLoss):
    """DPO-Positive (Pal et al., 2024, Smaug, arXiv 2402.13228).

        -log sigmoid(beta * (chosen - rejected - penalty * max(0, -chosen)))

    For answers that differ in few tokens, where DPO makes chosen ones less likely too: that is penalised here.

    It starts at ln 2.
    """

    name: ClassVar[str] = "dpop"

    penalty: float = option(50.0, "weight of a chosen answer's fall below the reference", low=0)

    def of_ratios(self, ratios: Tensor) -> Tensor:
        fall = torch.relu(-ratios[:, 0])
        return logistic(self.beta * (margins(ratios) - self.penalty * fall))


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class RDPOLoss(RatioLoss):
    """R-DPO (Park et al., 2024, arXiv 2403.19159).

        -log sigmoid(beta * (chosen - rejected) + alpha * (tokens of chosen - tokens of rejected))

    Against answers that grow longer: a chosen answer that is longer needs a smaller margin, since its length may be why
    it was chosen.

    It starts at ln 2 only for answers of equal length.
    """

    name: ClassVar[str] = "rdpo"

    average_log_prob: bool = fixed(False)
    alpha: float = option(0.01, "reward that the labels give for each token of length", low=0)

    def of_ratios(self, ratios: Tensor) -> Tensor:
        return logistic(self.beta * margins(ratios))

    def start_value(self) -> None:
        """It depends on the lengths of the pair."""
        return None

    def __call__(self, inputs: LossInputs) -> PairLosses:
        rewards = self.beta * inputs.ratios(self.average_log_prob)
        longer = margins(inputs.policy.lengths).to(rewards.dtype)
        losses = logistic(margins(rewards) + self.alpha * longer)
        return PairLosses(losses=losses, metrics=reward_metrics(inputs.policy, rewards, self.average_log_prob))


def _distance(ratios: Tensor, aim: float) -> Tensor:
    """Squared distance of chosen to the aim plus that of rejected to minus the aim: (N, 2) -> (N,)."""
    return (ratios[:, 0] - aim) ** 2 + (ratios[:, 1] + aim) ** 2

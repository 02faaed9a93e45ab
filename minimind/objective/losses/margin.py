"""Losses of the margin alone: the log-ratio of chosen minus that of rejected."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind.objective.losses.bases import RatioLoss, logistic, margins
from minimind.objective.losses.options import fixed, option
from minimind.objective.losses.registry import register_loss

_SMOOTHING = "probability that a pair's label is wrong"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MarginLoss(RatioLoss):
    """A loss of `beta * (chosen - rejected)`. A larger margin is better."""

    @abc.abstractmethod
    def of_margins(self, scaled: Tensor) -> Tensor:
        """(N,) margins times beta -> (N,) losses."""

    def of_ratios(self, ratios: Tensor) -> Tensor:
        return self.of_margins(self.beta * margins(ratios))


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class SigmoidLoss(MarginLoss):
    """DPO (Rafailov et al., 2023, arXiv 2305.18290, equation 7).

        -log sigmoid(beta * (chosen - rejected))

    The default, and MiniMind's loss. With label_smoothing, for noisy labels, it is cDPO.

    cDPO (Mitchell, 2023) with label_smoothing s is `-(1 - s) log sigmoid(m) - s log sigmoid(-m)`, m the scaled margin.
    Its gradient vanishes where the policy prefers chosen with a probability of 1 - s. It starts at ln 2. DPO's paper
    takes sums of log-probs, MiniMind's second generation means.
    """

    name: ClassVar[str] = "sigmoid"

    label_smoothing: float = option(0.0, _SMOOTHING, low=0, below=0.5)

    def of_margins(self, scaled: Tensor) -> Tensor:
        return logistic(scaled, self.label_smoothing)


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class SigmoidNormLoss(SigmoidLoss):
    """Length-normalised DPO (Lambert et al., 2024, Tulu 3, arXiv 2411.15124).

        -log sigmoid(beta * (chosen - rejected))

    Against answers that grow longer. Tulu 3's beta is 5, since means are smaller than sums.

    The same as `sigmoid` of means with another beta. It starts at ln 2.
    """

    name: ClassVar[str] = "sigmoid_norm"

    average_log_prob: bool = fixed(True)
    beta: float = option(5.0, "a larger value keeps the policy closer to the reference", above=0)


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class RobustLoss(MarginLoss):
    """rDPO (Chowdhury et al., 2024, arXiv 2403.00409).

        (-(1 - s) log sigmoid(m) + s log sigmoid(-m)) / (1 - 2 s), m = beta * (chosen - rejected)

    For noisy labels. If a share s (label_smoothing) of the labels is flipped, its mean is DPO's on clean labels.

    It starts at ln 2. It has no lower bound: for large margins the second term dominates.
    """

    name: ClassVar[str] = "robust"

    label_smoothing: float = option(0.1, _SMOOTHING, low=0, below=0.5)

    def of_margins(self, scaled: Tensor) -> Tensor:
        flipped = self.label_smoothing
        loss = -(1 - flipped) * F.logsigmoid(scaled) + flipped * F.logsigmoid(-scaled)
        return loss / (1 - 2 * flipped)


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class HingeLoss(MarginLoss):
    """SLiC with DPO's reward (Zhao et al., 2023, arXiv 2305.10425; Liu et al., 2023, RSO, arXiv 2309.06657).

        max(0, 1 - beta * (chosen - rejected))

    No gradient once a pair is won by a margin of 1 / beta.

    It starts at 1.
    """

    name: ClassVar[str] = "hinge"

    def of_margins(self, scaled: Tensor) -> Tensor:
        return torch.relu(1 - scaled)


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class IPOLoss(RatioLoss):
    """IPO (Azar et al., 2023, arXiv 2310.12036, equation 17).

        (chosen - rejected - 1 / (2 beta))^2

    Against overfitting: it aims at a margin of 1 / (2 beta) instead of an infinite one.

    It starts at 1 / (2 beta)^2. The paper writes sums; TRL takes means, which its authors confirmed with the paper's.
    """

    name: ClassVar[str] = "ipo"

    average_log_prob: bool = option(True, "1: mean log-prob of a row's tokens; 0: their sum")
    # A target, no scale of the margin: the paper's, whatever the model's default for DPO is.
    beta: float = option(0.1, "a larger value aims at a smaller margin", above=0)

    def of_ratios(self, ratios: Tensor) -> Tensor:
        return (margins(ratios) - 1 / (2 * self.beta)) ** 2


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class ExoPairLoss(MarginLoss):
    """EXO for pairs (Ji et al., 2024, arXiv 2402.00856, equation 16).

        q log(q / (1 - s)) + (1 - q) log((1 - q) / s), q = sigmoid(beta * (chosen - rejected))

    Reverse KL from the policy's preference to the labels': it settles at q = 1 - s instead of growing forever.

    It starts at -ln 2 - ln(s (1 - s)) / 2. label_smoothing s must be above 0.
    """

    name: ClassVar[str] = "exo_pair"

    label_smoothing: float = option(1e-3, _SMOOTHING, above=0, below=0.5)

    def of_margins(self, scaled: Tensor) -> Tensor:
        won, lost = F.logsigmoid(scaled), F.logsigmoid(-scaled)
        return won.exp() * (won - math.log1p(-self.label_smoothing)) + lost.exp() * (
            lost - math.log(self.label_smoothing)
        )


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscoPOPLoss(MarginLoss):
    """DiscoPOP (Lu et al., 2024, arXiv 2406.08414, equation 5).

        (1 - w) * -log sigmoid(m) + w * exp(-m), m = beta * (chosen - rejected), w = sigmoid(m / tau)

    A loss that a language model discovered: logistic for lost pairs, exponential for won ones.

    It starts at (ln 2 + 1) / 2. It is not convex: at m = 0 its slope is (1 - ln 2) / (4 tau) - 3 / 4, above 0 for tau
    up to 0.1, so that the first steps make margins smaller. The paper notes this too.
    """

    name: ClassVar[str] = "discopop"

    tau: float = option(0.05, "width of the change from logistic to exponential", above=0, high=1)

    def of_margins(self, scaled: Tensor) -> Tensor:
        to_exponential, to_logistic = scaled / self.tau, -scaled / self.tau
        # One exponential of the sum of logarithms: for a large negative m the factor exp(-m) alone would overflow.
        exponential = torch.exp(F.logsigmoid(to_exponential) - scaled)
        return torch.sigmoid(to_logistic) * -F.logsigmoid(scaled) + exponential


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class FocalLoss(MarginLoss):
    """FocalPO (Liu et al., 2025, arXiv 2501.06645).

        -p^gamma log p, p = sigmoid(beta * (chosen - rejected))

    Weights pairs that the policy already ranks rightly: the opposite of the focal loss of computer vision.

    It starts at 0.5^gamma ln 2. gamma = 0 is DPO.
    """

    name: ClassVar[str] = "focal"

    gamma: float = option(0.05, "exponent of the probability that weights a pair", low=0)

    def of_margins(self, scaled: Tensor) -> Tensor:
        log_probability = F.logsigmoid(scaled)
        return -torch.exp(self.gamma * log_probability) * log_probability

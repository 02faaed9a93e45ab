"""f-DPO: DPO with another divergence than the reverse KL between policy and reference."""

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class DivergenceLoss(RatioLoss):
    """`-log sigmoid(beta * (f'(u_chosen) - f'(u_rejected)))`, u the ratio of policy to reference probability.

    f is the divergence's function; constants of f' cancel. All start at ln 2. Sums of log-probs, since u is a ratio of
    probabilities of whole answers.
    """

    average_log_prob: bool = fixed(False)

    @abc.abstractmethod
    def slope(self, ratios: Tensor) -> Tensor:
        """f'(u) of log u, up to a constant, of any shape."""

    def rewards(self, ratios: Tensor) -> Tensor:
        return self.beta * self.slope(ratios)

    def of_ratios(self, ratios: Tensor) -> Tensor:
        return logistic(margins(self.rewards(ratios)))


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class ReverseKLLoss(DivergenceLoss):
    """f-DPO with reverse KL (Wang et al., 2023, arXiv 2309.16240).

        -log sigmoid(beta * (chosen - rejected))

    DPO under its other name; `sigmoid` with sums of log-probs.
    """

    name: ClassVar[str] = "reverse_kl"

    def slope(self, ratios: Tensor) -> Tensor:
        return ratios


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class ForwardKLLoss(DivergenceLoss):
    """f-DPO with forward KL (Wang et al., 2023, arXiv 2309.16240).

        -log sigmoid(beta * (exp(-rejected) - exp(-chosen)))

    Keeps more diversity than DPO: an answer may not become unlikely.

    It overflows for an answer that the policy gives e^88 times less often than the reference, and the run then stops.
    """

    name: ClassVar[str] = "forward_kl"

    def slope(self, ratios: Tensor) -> Tensor:
        return -torch.exp(-ratios)


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class JSDivergenceLoss(DivergenceLoss):
    """f-DPO with the Jensen-Shannon divergence (Wang et al., 2023, arXiv 2309.16240).

        -log sigmoid(beta * (log sigmoid(chosen) - log sigmoid(rejected)))

    Between forward and reverse KL. The reward is at most beta ln 2, so that likely answers are not made ever likelier.
    """

    name: ClassVar[str] = "js_divergence"

    def slope(self, ratios: Tensor) -> Tensor:
        # log(2 u / (1 + u)), u = exp(ratio).
        return math.log(2) + F.logsigmoid(ratios)


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class AlphaDivergenceLoss(DivergenceLoss):
    """f-DPO with an alpha-divergence (Wang et al., 2023, arXiv 2309.16240).

        -log sigmoid(beta * (exp(-alpha * rejected) - exp(-alpha * chosen)) / alpha)

    From reverse KL (alpha near 0) to forward KL (alpha near 1).

    This alpha is the paper's; TRL's f_alpha_divergence_coef is 1 - alpha. It overflows as forward KL does.
    """

    name: ClassVar[str] = "alpha_divergence"

    alpha: float = option(0.5, "near 0: reverse KL, near 1: forward KL", above=0, below=1)

    def slope(self, ratios: Tensor) -> Tensor:
        return -torch.expm1(-self.alpha * ratios) / self.alpha

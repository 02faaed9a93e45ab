"""Losses without a reference: the policy's own log-probs are the reward. No reference engine is built."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from minimind.objective.losses.bases import PolicyLoss, logistic, margins
from minimind.objective.losses.contract import LOG_PROB_METRICS, LossInputs, PairLosses, log_prob_metrics
from minimind.objective.losses.options import fixed, option
from minimind.objective.losses.registry import register_loss

_SMOOTHING = "probability that a pair's label is wrong"
# Largest mean log-prob whose odds are computed: float32 cannot tell 1 - p from 0 above it.
_ALMOST_CERTAIN = -1e-7


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class SFTLoss(PolicyLoss):
    """Supervised fine-tuning on chosen answers (Pang et al., 2024, arXiv 2404.19733).

        -p_chosen

    In a mix with another loss, to keep chosen answers likely: `sigmoid:1,sft:1` is RPO.

    Each answer counts the same, as in the papers of RPO and MPO. TRL takes the mean over all tokens of a micro-batch,
    which depends on how the batch is split.
    """

    name: ClassVar[str] = "sft"
    metrics: ClassVar[tuple[str, ...]] = LOG_PROB_METRICS

    average_log_prob: bool = fixed(True)

    def of_rows(self, rows: Tensor) -> Tensor:
        return -rows[:, 0]

    def rewards(self, rows: Tensor) -> Tensor:
        return rows

    def __call__(self, inputs: LossInputs) -> PairLosses:
        rows = inputs.policy.rows(self.average_log_prob)
        return PairLosses(losses=self.of_rows(rows), metrics=log_prob_metrics(inputs.policy, self.average_log_prob))


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class SimPOLoss(PolicyLoss):
    """SimPO (Meng et al., 2024, arXiv 2405.14734, equation 6).

        -log sigmoid(beta * (p_chosen - p_rejected) - gamma)

    No reference in memory, no bias towards long answers. Sensitive to the learning rate; nothing holds the policy near
    its start.

    gamma is the margin itself. TRL's simpo_gamma too; the authors' code has gamma / beta.
    """

    name: ClassVar[str] = "simpo"

    average_log_prob: bool = fixed(True)
    beta: float = option(2.0, "scale of the reward", above=0)
    gamma: float = option(1.0, "margin that a pair must be won by", low=0)
    label_smoothing: float = option(0.0, _SMOOTHING, low=0, below=0.5)

    def of_rows(self, rows: Tensor) -> Tensor:
        return logistic(margins(self.rewards(rows)) - self.gamma, self.label_smoothing)

    def rewards(self, rows: Tensor) -> Tensor:
        return self.beta * rows


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class AlphaPOLoss(SimPOLoss):
    """AlphaPO (Gupta et al., 2025, arXiv 2501.03884).

        -log sigmoid(r_chosen - r_rejected - gamma), r = beta * (1 - exp(-alpha * p)) / alpha

    SimPO with a reward of another shape: alpha above 0 makes chosen answers fall less.

    alpha near 0 is SimPO.
    """

    name: ClassVar[str] = "alpha_po"

    alpha: float = option(0.25, "shape of the reward; near 0: SimPO", above=0)

    def rewards(self, rows: Tensor) -> Tensor:
        return self.beta * -torch.expm1(-self.alpha * rows) / self.alpha


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class CPOLoss(PolicyLoss):
    """CPO (Xu et al., 2024, arXiv 2401.08417, equation 3).

        -log sigmoid(beta * (p_chosen - p_rejected)) - nll_weight * (mean log-prob of chosen)

    DPO without its reference, held by the likelihood of chosen answers. Made for translation.

    The paper writes the second term as a log-prob of the answer; the authors' code and TRL take the mean over tokens,
    there of a micro-batch, here of each answer.
    """

    name: ClassVar[str] = "cpo"

    average_log_prob: bool = fixed(False)
    beta: float = option(0.1, "scale of the reward", above=0)
    nll_weight: float = option(1.0, "weight of the negative log-likelihood of chosen answers", low=0)
    label_smoothing: float = option(0.0, _SMOOTHING, low=0, below=0.5)

    def of_rows(self, rows: Tensor) -> Tensor:
        return logistic(margins(self.rewards(rows)), self.label_smoothing)

    def rewards(self, rows: Tensor) -> Tensor:
        return self.beta * rows

    def __call__(self, inputs: LossInputs) -> PairLosses:
        result = super().__call__(inputs)
        return dataclasses.replace(result, losses=result.losses - self.nll_weight * inputs.policy.rows(True)[:, 0])


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class ORPOLoss(PolicyLoss):
    """ORPO (Hong et al., 2024, arXiv 2403.07691, equations 6 and 7).

        -p_chosen - odds_weight * log sigmoid(log odds of chosen - log odds of rejected)

    Preference and supervised fine-tuning in one run, from a base model.

    The odds of an answer are P / (1 - P) with P = exp(p). TRL calls odds_weight beta, and its first term counts the
    prompt too; the paper's does not.
    """

    name: ClassVar[str] = "orpo"

    average_log_prob: bool = fixed(True)
    odds_weight: float = option(0.1, "weight of the odds ratio (lambda in the paper, beta in TRL)", above=0)

    def of_rows(self, rows: Tensor) -> Tensor:
        return self.odds_weight * logistic(margins(_log_odds(rows))) - rows[:, 0]

    def rewards(self, rows: Tensor) -> Tensor:
        return self.odds_weight * rows


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class SimPERLoss(PolicyLoss):
    """SimPER (Xiao et al., 2025, arXiv 2502.00883).

        exp(p_rejected) - exp(p_chosen)

    Nothing to tune: it raises the inverse perplexity of chosen answers and lowers that of rejected ones.
    """

    name: ClassVar[str] = "simper"

    average_log_prob: bool = fixed(True)

    def of_rows(self, rows: Tensor) -> Tensor:
        return -margins(self.rewards(rows))

    def rewards(self, rows: Tensor) -> Tensor:
        return rows.exp()


def _log_odds(log_probs: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p, of any shape; log p is not above 0."""
    log_probs = log_probs.clamp(max=_ALMOST_CERTAIN)
    near_one = log_probs > -math.log(2)
    # log(1 - p) in two ways, each exact in its half. Each is computed of values of its own half only, since a gradient
    # of the other half may be infinite.
    large = torch.log(-torch.expm1(log_probs.where(near_one, -1.0)))
    small = torch.log1p(-torch.exp(log_probs.where(~near_one, -1.0)))
    return log_probs - torch.where(near_one, large, small)

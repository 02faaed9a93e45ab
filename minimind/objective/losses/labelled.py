"""Losses of single answers with a label, desirable or not: no answer needs a second one to the same prompt.

LossInputs: log-ratio of each answer, its label -> (N,) losses; metrics of desirable and of undesirable answers
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from minimind.objective.losses.bases import logistic
from minimind.objective.losses.contract import LossInputs, Need, PairLosses, PreferenceLoss
from minimind.objective.losses.options import fixed, option
from minimind.objective.losses.registry import register_loss

_DESIRABLE, _UNDESIRABLE = "desirable", "undesirable"
# Metric -> the part of the answers that it is the mean of.
_PARTS = {
    "rewards/chosen": _DESIRABLE,
    "rewards/rejected": _UNDESIRABLE,
    "logps/chosen": _DESIRABLE,
    "logps/rejected": _UNDESIRABLE,
}
_METRICS = (*_PARTS, _DESIRABLE, _UNDESIRABLE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledLoss(PreferenceLoss):
    """A loss of the reward of each answer, `beta` times its log-ratio, and of its label."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.REFERENCE, Need.LABELS})
    metrics: ClassVar[tuple[str, ...]] = _METRICS
    parts: ClassVar[Mapping[str, str]] = _PARTS

    beta: float = option(0.1, "a larger value keeps the policy closer to the reference", above=0)

    @abc.abstractmethod
    def of_rewards(self, rewards: Tensor, labels: Tensor, inputs: LossInputs) -> Tensor:
        """(N,) rewards and (N,) labels -> (N,) losses."""

    def further(self, rewards: Tensor, inputs: LossInputs) -> Mapping[str, Tensor]:
        """Further metrics, (N,) each, of detached rewards."""
        return {}

    def __call__(self, inputs: LossInputs) -> PairLosses:
        assert inputs.labels is not None
        rewards = self.beta * inputs.ratios(self.average_log_prob)[:, 0]
        logps = inputs.policy.rows(self.average_log_prob)[:, 0]
        known = rewards.detach()
        desirable = inputs.labels.to(known.dtype)
        shares = (desirable, 1 - desirable)
        # Each is the mean over its part: the other answers count as 0, and the sum is divided by the part's share.
        values = [value * share for value in (known, logps.detach()) for share in shares]
        metrics = {**dict(zip(_METRICS, (*values, *shares), strict=True)), **self.further(known, inputs)}
        return PairLosses(
            losses=self.of_rewards(rewards, inputs.labels, inputs),
            metrics={name: metrics[name] for name in self.metrics},
            statistics=self.observed(known),
        )

    def observed(self, rewards: Tensor) -> Mapping[str, Tensor]:
        """Values for the running means of `statistics`, of detached rewards."""
        return {}


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class KTOLoss(LabelledLoss):
    """KTO (Ethayarajh et al., 2024, arXiv 2402.01306, equation 8).

        w * (1 - sigmoid(beta * (r - z))) if desirable, w * (1 - sigmoid(beta * (z - r))) if not, z = max(0, mean of r')

    For thumbs up and down: each answer has a label of its own, and there may be more of one kind than of the other.

    r is an answer's log-ratio, r' that of the answer to another prompt behind the same prompt. Their mean over the
    global batch estimates the KL divergence from the reference; it has no gradient. TRL averages over micro-batches.
    The other answer is that of a row behind this one in the file, with another prompt; in TRL that of the row before,
    in a group of rows of the file. w is desirable_weight or undesirable_weight. It starts at w / 2.
    """

    name: ClassVar[str] = "kto"
    needs: ClassVar[frozenset[Need]] = LabelledLoss.needs | {Need.MISMATCHED}
    metrics: ClassVar[tuple[str, ...]] = (*_METRICS, "kl")

    average_log_prob: bool = fixed(False)
    desirable_weight: float = option(1.0, "weight of desirable answers", low=0)
    undesirable_weight: float = option(1.0, "weight of undesirable answers", low=0)

    def start_value(self) -> float | None:
        """All log-ratios are 0 at the start; with two weights it depends on the label."""
        return self.desirable_weight / 2 if self.desirable_weight == self.undesirable_weight else None

    def of_rewards(self, rewards: Tensor, labels: Tensor, inputs: LossInputs) -> Tensor:
        weights = torch.where(labels, self.desirable_weight, self.undesirable_weight)
        # 1 - sigmoid(x) = sigmoid(-x), without cancellation.
        return weights * torch.sigmoid(_signs(labels, rewards) * (self.beta * self._divergence(inputs) - rewards))

    def further(self, rewards: Tensor, inputs: LossInputs) -> Mapping[str, Tensor]:
        return {"kl": self._divergence(inputs).expand_as(rewards)}

    def _divergence(self, inputs: LossInputs) -> Tensor:
        """The estimate of the KL divergence, a scalar without gradient."""
        assert inputs.mismatched is not None
        return inputs.mismatched.clamp_min(0)


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class BCOLoss(LabelledLoss):
    """BCO (Jung et al., 2024, arXiv 2404.04656).

        -log sigmoid(beta * r - shift) if desirable, -log sigmoid(-(beta * r - shift)) if not

    A classifier of good and bad answers. It needs no answers to other prompts, so a step costs less than KTO's.

    r is an answer's log-ratio. The shift is the mean reward of all answers over all global steps before this one, 0 in
    the first; the paper's is the mean of those of desirable and of undesirable answers. It starts at ln 2.
    """

    name: ClassVar[str] = "bco"

    reward_shift: bool = option(True, "1: subtract the running mean of rewards, as in the paper; 0: do not, as in TRL")

    @property
    def statistics(self) -> Mapping[str, float]:
        return {"reward": 1.0} if self.reward_shift else {}

    def start_value(self) -> float:
        """All rewards are 0 at the start."""
        return float(logistic(torch.zeros((), dtype=torch.float64)))

    def of_rewards(self, rewards: Tensor, labels: Tensor, inputs: LossInputs) -> Tensor:
        # Absent in the first step: all rewards are 0 before it.
        known = inputs.statistics if self.reward_shift else {}
        shift = known.get("reward", torch.zeros_like(rewards[0]))
        return logistic(_signs(labels, rewards) * (rewards - shift))

    def observed(self, rewards: Tensor) -> Mapping[str, Tensor]:
        return {"reward": rewards} if self.reward_shift else {}


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class APOZeroUnpairedLoss(LabelledLoss):
    """APO-zero for single answers (D'Oosterlinck et al., 2024, arXiv 2408.06266, equation 7).

        1 - sigmoid(beta * r) if desirable, sigmoid(beta * r) if not

    KTO with its KL term at 0: for desirable answers that are better than the model's own.

    r is an answer's log-ratio. It starts at 1/2.
    """

    name: ClassVar[str] = "apo_zero_unpaired"

    def start_value(self) -> float:
        """All rewards are 0 at the start."""
        return 0.5

    def of_rewards(self, rewards: Tensor, labels: Tensor, inputs: LossInputs) -> Tensor:
        return torch.sigmoid(_signs(labels, rewards) * -rewards)


def _signs(labels: Tensor, like: Tensor) -> Tensor:
    """1 for desirable answers, -1 for others, in the dtype of a tensor."""
    return labels.to(like.dtype) * 2 - 1

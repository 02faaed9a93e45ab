"""Base classes: a loss of each row's log-ratio to the reference, and a loss of the policy's log-probs alone.

LossInputs -> (N, 2) log-ratios or log-probs -> `of_ratios` or `of_rows` of a subclass -> (N,) losses; metrics
"""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind.objective.losses.contract import LossInputs, Need, PairLosses, PreferenceLoss, reward_metrics
from minimind.objective.losses.options import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class RatioLoss(PreferenceLoss):
    """A loss of log-ratios: each row's log-prob under the policy minus that under the reference."""

    beta: float = option(0.1, "a larger value keeps the policy closer to the reference", above=0, follows_model=True)

    @abc.abstractmethod
    def of_ratios(self, ratios: Tensor) -> Tensor:
        """(N, 2) log-ratios -> (N,) losses, each of its own pair."""

    def rewards(self, ratios: Tensor) -> Tensor:
        """(N, 2) log-ratios -> (N, 2) implicit rewards, for the metrics."""
        return self.beta * ratios

    def start_value(self) -> float | None:
        """All log-ratios are 0 at the start."""
        return float(self.of_ratios(torch.zeros(1, 2, dtype=torch.float64)))

    def __call__(self, inputs: LossInputs) -> PairLosses:
        ratios = inputs.ratios(self.average_log_prob)
        metrics = reward_metrics(inputs.policy, self.rewards(ratios), self.average_log_prob)
        return PairLosses(losses=self.of_ratios(ratios), metrics=metrics)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyLoss(PreferenceLoss):
    """A loss of the policy's log-probs, without a reference."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    @abc.abstractmethod
    def of_rows(self, rows: Tensor) -> Tensor:
        """(N, 2) log-probs -> (N,) losses, each of its own pair."""

    @abc.abstractmethod
    def rewards(self, rows: Tensor) -> Tensor:
        """(N, 2) log-probs -> (N, 2) implicit rewards, for the metrics."""

    def start_value(self) -> None:
        """It depends on the log-probs of the pair."""
        return None

    def __call__(self, inputs: LossInputs) -> PairLosses:
        rows = inputs.policy.rows(self.average_log_prob)
        metrics = reward_metrics(inputs.policy, self.rewards(rows), self.average_log_prob)
        return PairLosses(losses=self.of_rows(rows), metrics=metrics)


def margins(rows: Tensor) -> Tensor:
    """Chosen minus rejected: (N, 2) -> (N,)."""
    return rows[:, 0] - rows[:, 1]


def logistic(logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Logistic loss of labels that are wrong with a probability: `-(1 - s) log sigmoid(x) - s log sigmoid(-x)`.

    logsigmoid is stable for logits of any size; log(sigmoid(x)) overflows below -88.
    """
    if not label_smoothing:
        return -F.logsigmoid(logits)
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)

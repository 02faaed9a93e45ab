"""What a preference loss is: its inputs, its result, its options and its metrics.

    LossInputs (log-probs of N pairs under policy and reference, ...) -> PreferenceLoss -> PairLosses: N losses, metrics

A loss is a frozen data class whose fields are its options. Shape letters: N pairs, K targets. Columns of pairs are
ordered chosen, rejected. All tensors are float32.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from minimind.objective.losses.options import option
from minimind.objective.rows import row_lengths, row_means


class Need(enum.Enum):
    """An input of a loss besides the policy's row log-probs."""

    REFERENCE = "row log-probs of the reference"
    PER_TOKEN = "log-probs of single tokens"
    GLOBAL_BATCH = "all pairs of the global batch"
    SCORES = "scores of both answers in the data"
    SCORE_GAPS = "a score of chosen above that of rejected"
    LABELS = "answers with labels instead of pairs"
    MISMATCHED = "log-ratios of answers to other prompts, of the global batch"
    COLLISIONS = "sums of squared probabilities of all tokens under the policy"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairScores:
    """Log-probs of N pairs under one model.

    Attributes:
        sums: (N, 2) log-prob of each row, summed over its targets.
        target_counts: (N, 3) int64, targets in the shared prefix, in chosen, in rejected.
        per_token: (K,) log-prob of each target; None unless the loss declares `Need.PER_TOKEN`.
        collision_sums: (N, 2) log of the sum of squared probabilities of all tokens, summed over a row's positions; of
            the policy, without gradient; None unless the loss declares `Need.COLLISIONS`.
    """

    sums: Tensor
    target_counts: Tensor
    per_token: Tensor | None = None
    collision_sums: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """(N, 2) int64, targets of each row."""
        return row_lengths(self.target_counts)

    def rows(self, average_log_prob: bool) -> Tensor:
        """(N, 2) log-prob of each row: the mean over its targets, or their sum."""
        return row_means(self.sums, self.target_counts) if average_log_prob else self.sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchShare:
    """What a loss over the global batch gives to N of its pairs, computed of the log-probs of all of them.

    Attributes:
        losses: (N,) without gradient.
        slopes: (N, 2) derivative of the sum of all losses of the batch in each row's summed log-prob.
        metrics, statistics: name -> (N,), as in `PairLosses`.
    """

    losses: Tensor
    slopes: Tensor
    metrics: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor]

    def of(self, indices: Tensor) -> BatchShare:
        """The share of some of its pairs."""
        return BatchShare(
            losses=self.losses[indices],
            slopes=self.slopes[indices],
            metrics={name: values[indices] for name, values in self.metrics.items()},
            statistics={name: values[indices] for name, values in self.statistics.items()},
        )

    def attached_to(self, policy: PairScores) -> PairLosses:
        """The result for these pairs, with the gradient that the whole batch's losses have in their log-probs."""
        # The difference is 0, and its derivative 1.
        surplus = (self.slopes * (policy.sums - policy.sums.detach())).sum(1)
        return PairLosses(losses=self.losses + surplus, metrics=self.metrics, statistics=self.statistics)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossInputs:
    """What a loss may use.

    Attributes:
        policy: the policy's log-probs, with gradient.
        reference: the reference's log-probs; None if the loss does not need them.
        statistics: name -> scalar, running mean over the global steps before this one, for the names in the loss's
            `statistics`; empty in the first step.
        scores: (N, 2) scores of the answers in the data; None unless the loss declares `Need.SCORES`.
        labels: (N,) bool, whether an answer is desirable; None unless the loss declares `Need.LABELS`. The items are
            answers then: they are in column 0 of the log-probs, and column 1 is not used.
        mismatched: scalar without gradient, the mean log-ratio (summed log-probs) of answers to other prompts, over the
            global batch; None unless the loss declares `Need.MISMATCHED`.
        shares: name of a loss over the global batch -> its share of these pairs; empty if these are the whole batch.
    """

    policy: PairScores
    reference: PairScores | None = None
    statistics: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    scores: Tensor | None = None
    labels: Tensor | None = None
    mismatched: Tensor | None = None
    shares: Mapping[str, BatchShare] = dataclasses.field(default_factory=dict)

    def ratios(self, average_log_prob: bool) -> Tensor:
        """(N, 2) log-prob of each row under the policy minus that under the reference."""
        assert self.reference is not None
        return self.policy.rows(average_log_prob) - self.reference.rows(average_log_prob)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairLosses:
    """Result of a loss for N pairs.

    Attributes:
        losses: (N,), with gradient.
        metrics: name -> (N,), without gradient; the names that the loss declares.
        statistics: name -> (N,), without gradient; the names in the loss's `statistics`.
    """

    losses: Tensor
    metrics: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


# Metrics of a loss over two answers.
LOG_PROB_METRICS = ("logps/chosen", "logps/rejected")
REWARD_METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    *LOG_PROB_METRICS,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceLoss(abc.ABC):
    """A loss over pairs.

    Class attributes:
        name: its value of `--loss`.
        needs: inputs besides the policy's row log-probs.
        metrics: names of the metrics that it returns, in the order in which they are logged.
        parts: metric -> metric with the weight of each item in it, for means over a part of the items.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset({Need.REFERENCE})
    metrics: ClassVar[tuple[str, ...]] = REWARD_METRICS
    parts: ClassVar[Mapping[str, str]] = {}

    # A loss that is defined for one of the two only fixes the value (`options.fixed`).
    average_log_prob: bool = option(True, "1: mean log-prob of a row's tokens; 0: their sum", follows_model=True)

    @property
    def statistics(self) -> Mapping[str, float]:
        """Names of values whose running means it needs, each with the weight of the past (0: the last step's mean)."""
        return {}

    @abc.abstractmethod
    def start_value(self) -> float | None:
        """Loss of a pair while policy and reference are the same model; None if it depends on the pair."""

    @abc.abstractmethod
    def __call__(self, inputs: LossInputs) -> PairLosses:
        """Losses and metrics of N pairs.

        The loss of a pair may not depend on other pairs, since these differ with the split of the global batch. A loss
        that declares `Need.GLOBAL_BATCH` gets all pairs of the global batch, ordered by their lines in the file.
        """


def log_prob_metrics(policy: PairScores, average_log_prob: bool) -> dict[str, Tensor]:
    """The metrics named in `LOG_PROB_METRICS`, each (N,) and detached."""
    rows = policy.rows(average_log_prob).detach()
    return dict(zip(LOG_PROB_METRICS, (rows[:, 0], rows[:, 1]), strict=True))


def reward_metrics(policy: PairScores, rewards: Tensor, average_log_prob: bool) -> dict[str, Tensor]:
    """The metrics named in `REWARD_METRICS`, each (N,) and detached.

    Args:
        rewards: (N, 2), the implicit reward of each row.
    """
    rewards = rewards.detach()
    margins = rewards[:, 0] - rewards[:, 1]
    # An accuracy is 1 if chosen has the larger reward, 0 if it has the smaller, one half for a tie.
    accuracies = (margins.sign() + 1) / 2
    values = (rewards[:, 0], rewards[:, 1], accuracies, margins)
    # The names of the log-probs are in the second mapping.
    return {**dict(zip(REWARD_METRICS, values, strict=False)), **log_prob_metrics(policy, average_log_prob)}

"""Preference losses: one class per loss, registered by name.

    PairScores of policy and reference -> PreferenceLoss -> PairLosses: N losses, metrics by name

A loss is a frozen data class. Its fields are its options; each is filled from the flag of the same name. It declares
which inputs it needs, which metrics it returns and its value before the first update. To add a loss, write one class
with `@register_loss` in this package and one test.

Shape letters: N pairs, K targets. Rows are ordered chosen, rejected. All tensors are float32.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import torch.nn.functional as F
from torch import Tensor


class Need(enum.Enum):
    """An input of a loss besides the policy's row log-probs."""

    REFERENCE = "row log-probs of the reference"
    PER_TOKEN = "log-probs of single tokens"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairScores:
    """Log-probs of N pairs under one model.

    Attributes:
        rows: (N, 2) log-prob of each row: the mean over its targets or their sum, as the run's settings say.
        per_token: (K,) log-prob of each target; None unless the loss declares `Need.PER_TOKEN`.
        target_counts: (N, 3) int64, targets in the shared prefix, in chosen, in rejected.
    """

    rows: Tensor
    target_counts: Tensor
    per_token: Tensor | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairLosses:
    """Result of a loss for N pairs.

    Attributes:
        losses: (N,), with gradient.
        metrics: name -> (N,), without gradient; the names that the loss declares.
    """

    losses: Tensor
    metrics: Mapping[str, Tensor]


# Metrics of every loss that compares a policy with a reference.
REWARD_METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceLoss(abc.ABC):
    """A loss over pairs.

    Class attributes:
        name: its value of `--loss`.
        needs: inputs besides the policy's row log-probs.
        metrics: names of the metrics that it returns, in the order in which they are logged.
        statistics: names of those of its metrics whose means over a global batch it needs, e.g. for a running baseline.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset({Need.REFERENCE})
    metrics: ClassVar[tuple[str, ...]] = REWARD_METRICS
    statistics: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def start_value(self) -> float | None:
        """Loss of a pair while policy and reference are the same model; None if it depends on the pair."""

    @abc.abstractmethod
    def __call__(
        self, policy: PairScores, reference: PairScores | None, statistics: Mapping[str, Tensor]
    ) -> PairLosses:
        """Losses and metrics of N pairs.

        Args:
            policy: the policy's log-probs, with gradient.
            reference: the reference's log-probs; None if the loss does not need them.
            statistics: name -> scalar mean over the pairs of the previous global step on all ranks, for the names that
                the loss declares; empty in the first step. The current step's means are not known before its last
                micro-batch, and means of single micro-batches would depend on how the batch is split.
        """


Loss = TypeVar("Loss", bound=type[PreferenceLoss])

_LOSSES: dict[str, type[PreferenceLoss]] = {}


def register_loss(loss: Loss) -> Loss:
    """Class decorator: makes a loss available under its name.

    Raises:
        ValueError: the name is taken by another class.
    """
    # The same class may be registered again: a module can be imported twice under test runners and notebooks.
    known = _LOSSES.setdefault(loss.name, loss)
    if known is not loss and known.__qualname__ != loss.__qualname__:
        raise ValueError(f"two losses are named {loss.name!r}: {known.__qualname__}, {loss.__qualname__}")
    _LOSSES[loss.name] = loss
    return loss


def loss_names() -> tuple[str, ...]:
    """Names of all registered losses, sorted."""
    return tuple(sorted(_LOSSES))


def build_loss(name: str, settings: Mapping[str, Any]) -> PreferenceLoss:
    """The loss with this name; each of its options is taken from the setting of the same name, else its default.

    Raises:
        KeyError: no loss has this name.
    """
    loss = _LOSSES[name]
    options = {field.name for field in dataclasses.fields(loss)}
    return loss(**{option: value for option, value in settings.items() if option in options})


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class SigmoidLoss(PreferenceLoss):
    """DPO (Rafailov et al., 2023, equation 7).

    With policy p and reference r, each the log-prob of a row:

        reward of a row = beta * (p - r)
        loss = -log sigmoid(reward_chosen - reward_rejected)

    A larger reward of chosen makes the loss smaller. It starts at ln 2, since all rewards are 0.

    Attributes:
        beta: strength of the pull towards the reference, above 0.
    """

    name: ClassVar[str] = "sigmoid"

    beta: float = 0.1

    def start_value(self) -> float:
        """-log sigmoid(0) = ln 2."""
        return math.log(2)

    def __call__(
        self, policy: PairScores, reference: PairScores | None, statistics: Mapping[str, Tensor] = MappingProxyType({})
    ) -> PairLosses:
        assert reference is not None
        rewards = self.beta * (policy.rows - reference.rows)
        # logsigmoid is stable for margins of any size; log(sigmoid(x)) overflows below -88.
        losses = -F.logsigmoid(rewards[:, 0] - rewards[:, 1])
        return PairLosses(losses=losses, metrics=reward_metrics(policy, rewards))


def reward_metrics(policy: PairScores, rewards: Tensor) -> dict[str, Tensor]:
    """The metrics named in `REWARD_METRICS`, each (N,) and detached.

    Args:
        rewards: (N, 2), the implicit reward of each row.
    """
    rewards, rows = rewards.detach(), policy.rows.detach()
    margins = rewards[:, 0] - rewards[:, 1]
    # An accuracy is 1 if chosen has the larger reward, 0 if it has the smaller, one half for a tie.
    accuracies = (margins.sign() + 1) / 2
    values = (rewards[:, 0], rewards[:, 1], accuracies, margins, rows[:, 0], rows[:, 1])
    return dict(zip(REWARD_METRICS, values, strict=True))

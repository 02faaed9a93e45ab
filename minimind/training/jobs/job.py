"""Job contract: what one step of training computes. The loop knows this class and no objective.

    global step's batches -> Job.targets -> one per batch (DPO: reference scores)
    batch, log-probs of its targets, its target -> Job.outcome -> BatchOutcome: losses with gradient, metrics by name

If an item's loss depends on other items of the global batch (`Job.whole_batch`), the log-probs of `Job.ahead` of all
its micro-batches are computed first, and `Job.share` adds to each target what they give to the batch's losses.

A job is a batch layout, a loss and its metrics: dpo.py, tokens.py; kinds.py says what setup needs of each.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from torch import Tensor

from minimind.data.packs import Batch

BatchKind = TypeVar("BatchKind", bound=Batch)
Target = TypeVar("Target")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A metric on the console.

    Attributes:
        metric: its name in the logged metrics.
        label: its name on the console.
        format: format specification of a logged step's value.
        eval_format: format specification of an evaluation's value, which is a mean over more items.
    """

    metric: str
    label: str
    format: str
    eval_format: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSums:
    """A value of the tokens of N items.

    Attributes:
        sums: (N,) float32, without gradient, summed over an item's tokens.
        counts: (N,) number of these tokens.
    """

    sums: Tensor
    counts: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchOutcome:
    """Loss and metrics of one micro-batch with N items (DPO: pairs).

    Attributes:
        losses: (N,) float32, with gradient, without the model's auxiliary loss.
        metrics: name -> (N,) float32, without gradient; the job's `metrics`.
        token_metrics: name -> what a metric that is a mean over tokens is made of; of the job's `token_metrics` those
            that this micro-batch knows.
        values: name -> (N,) float32, without gradient: what a ledger keeps of each item beside its loss and metrics.
    """

    losses: Tensor
    metrics: Mapping[str, Tensor]
    token_metrics: Mapping[str, TokenSums] = dataclasses.field(default_factory=dict)
    values: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    def of_items(self, name: str) -> Tensor:
        """(N,) without gradient: a metric, one of `values`, or the losses under the name "loss"."""
        if name == "loss":
            return self.losses.detach()
        return self.metrics[name] if name in self.metrics else self.values[name]


class Job(abc.ABC, Generic[BatchKind, Target]):
    """One kind of training.

    Attributes:
        name: short name, e.g. dpo; its loss without the auxiliary loss is logged as `<name>_loss`.
        item: what the loss is a mean over, in the plural, for rates and messages, e.g. pairs.
        examples: what the entries of the table are, for messages; often the items themselves.
        metrics: names of the metrics in `BatchOutcome`, in the order in which they are logged.
        token_metrics: names of the metrics that are means over tokens, logged after `metrics`.
        columns: metrics that the console shows beside the loss.
        whole_batch: an item's loss depends on other items of the global batch.
        metric_parts: metric -> metric with the weight of each item in it, for means over a part of the items.
    """

    name: str
    item: str
    metrics: tuple[str, ...]
    token_metrics: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    whole_batch: bool = False
    examples: str = ""
    metric_parts: Mapping[str, str] = {}

    @abc.abstractmethod
    def targets(self, batches: Sequence[BatchKind]) -> Sequence[Target]:
        """What the loss of each micro-batch of a global step needs besides the policy's log-probs.

        Called once per step, before the policy's forwards, so that a reference can score all micro-batches together.
        """

    @abc.abstractmethod
    def outcome(self, batch: BatchKind, log_probs: Tensor, target: Target) -> BatchOutcome:
        """Loss and metrics of a micro-batch.

        Args:
            log_probs: (K,) float32, the policy's log-probs of the targets of `trained`, or more columns
                (`Policy.score`).
            target: of this batch, from `targets`.
        """

    def trained(self, batch: BatchKind) -> BatchKind:
        """The part of a micro-batch whose log-probs `outcome` gets, with a gradient."""
        return batch

    def ahead(self, batch: BatchKind) -> BatchKind:
        """The part of a micro-batch whose log-probs `share` gets, without a gradient."""
        return batch

    def share(
        self,
        batches: Sequence[BatchKind],
        log_probs: Sequence[Tensor],
        targets: Sequence[Target],
        weights: Sequence[Sequence[float]] | None = None,
    ) -> Sequence[Target]:
        """Targets that also hold what the whole global batch gives to each item's loss. All ranks must call.

        The targets themselves, unless the job is one of `whole_batch`.

        Args:
            batches: all micro-batches of this rank; their tokens are not needed.
            log_probs: of `ahead` of each micro-batch, (K,) float32, without gradient.
            weights: of each example, as in `item_weights`; None: all count, and all ranks have the same number of
                items.
        """
        return targets

    @abc.abstractmethod
    def size(self, batch: BatchKind) -> int:
        """Number of items of a micro-batch."""

    def weights(self, batches: Sequence[BatchKind]) -> Sequence[Tensor | float]:
        """Weight of each micro-batch's mean loss in the loss of a global step. All ranks must call.

        The step's loss is the mean over ranks of the weighted sums. Here all ranks have the same number of items, so
        that the weights are shares of this rank's; a job whose ranks differ in it must count the items of all.
        """
        # Micro-batches of a token budget differ in size.
        total = sum(self.size(batch) for batch in batches)
        return [self.size(batch) / total for batch in batches]

    def derived(self, means: Mapping[str, float]) -> dict[str, float]:
        """Metrics that follow from the means of others, such as a perplexity."""
        return {}

    def item_weights(self, batch: BatchKind, weights: Tensor) -> Tensor:
        """Weight of each item, given those of the batch's examples.

        An example is one entry of the table. Here each is one item; a job whose items are parts of examples, such as
        tokens, repeats the weights.

        Args:
            weights: one for each example; 0 excludes its items from an evaluation.

        Returns:
            (N,) as many as `size` says.
        """
        return weights

"""The DPO job: a preference loss over pairs, against a frozen reference.

log-probs (K,) -> row sums (N, 2) -> row means or sums -> preference loss -> N losses, metrics
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minimind.data.packs import PairBatch
from minimind.engine.reference import Reference
from minimind.objective.losses import Need, PairScores, PreferenceLoss
from minimind.objective.rows import ReferenceScores, row_means, row_sums
from minimind.training.jobs.job import BatchOutcome, Column, Job
from minimind.training.listeners.batch_statistics import BatchStatistics

_COLUMNS = (
    Column(metric="rewards/accuracies", label="accuracy", format=".2f", eval_format=".3f"),
    Column(metric="rewards/margins", label="margin", format="+.4f", eval_format="+.4f"),
)


class DPOJob(Job[PairBatch, ReferenceScores | None]):
    """Direct Preference Optimization with any registered preference loss.

    Args:
        loss: the loss over pairs.
        average_log_prob: a row's log-prob is the mean over its targets (MiniMind) instead of their sum (the paper).
        reference: source of the reference's log-probs; None for a loss that needs none.
        statistics: means over the previous global batch; None for a loss that needs none.
    """

    name = "dpo"
    item = "pairs"

    def __init__(
        self,
        *,
        loss: PreferenceLoss,
        average_log_prob: bool,
        reference: Reference | None,
        statistics: BatchStatistics | None = None,
    ) -> None:
        # Setup builds an engine for the reference exactly if the loss needs one.
        assert (reference is not None) == (Need.REFERENCE in loss.needs)
        self.loss = loss
        self.average_log_prob = average_log_prob
        self.reference = reference
        self._statistics = statistics
        self.metrics = loss.metrics
        self.columns = tuple(column for column in _COLUMNS if column.metric in loss.metrics)
        self._per_token = Need.PER_TOKEN in loss.needs

    def targets(self, batches: Sequence[PairBatch]) -> Sequence[ReferenceScores | None]:
        """The reference's scores of each micro-batch."""
        if self.reference is None:
            return [None] * len(batches)
        return self.reference.score(batches, per_token=self._per_token)

    def outcome(self, batch: PairBatch, log_probs: Tensor, target: ReferenceScores | None) -> BatchOutcome:
        """Losses and metrics of the batch's N pairs."""
        policy = self._scores(batch, row_sums(log_probs, batch.target_counts), log_probs)
        reference = None if target is None else self._scores(batch, target.sums, target.per_token)
        result = self.loss(policy, reference, {} if self._statistics is None else self._statistics.means)
        # An evaluation uses the means of training and does not change them.
        if self._statistics is not None and torch.is_grad_enabled():
            self._statistics.add(result.metrics)
        return BatchOutcome(losses=result.losses, metrics=result.metrics)

    def size(self, batch: PairBatch) -> int:
        """N, the number of pairs."""
        return batch.num_pairs

    def _scores(self, batch: PairBatch, sums: Tensor, per_token: Tensor | None) -> PairScores:
        # The cache and the live reference both give sums, so one run can use means and another sums of the same cache.
        rows = row_means(sums, batch.target_counts) if self.average_log_prob else sums
        return PairScores(
            rows=rows,
            target_counts=batch.target_counts,
            per_token=per_token if self._per_token else None,
        )

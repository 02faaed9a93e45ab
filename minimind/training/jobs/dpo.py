"""The DPO job: preference losses over pairs, most of them against a frozen reference.

log-probs (K,) -> row sums (N, 2) -> objective (a loss, or a mix of losses) -> N losses, metrics
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minimind.data.packs import PairBatch
from minimind.engine.reference import Reference
from minimind.objective.losses import LossInputs, Need, Objective, PairScores
from minimind.objective.rows import ReferenceScores, row_sums
from minimind.training.jobs.job import BatchOutcome, Column, Job
from minimind.training.listeners.batch_statistics import BatchStatistics

_COLUMNS = (
    Column(metric="rewards/accuracies", label="accuracy", format=".2f", eval_format=".3f"),
    Column(metric="rewards/margins", label="margin", format="+.4f", eval_format="+.4f"),
)


class DPOJob(Job[PairBatch, ReferenceScores | None]):
    """Direct Preference Optimization with any registered losses.

    Args:
        objective: the loss over pairs, or a mix of losses.
        reference: source of the reference's log-probs; None for losses that need none.
        statistics: running means over global batches; None for losses that need none.
    """

    name = "dpo"
    item = "pairs"

    def __init__(
        self,
        *,
        objective: Objective,
        reference: Reference | None,
        statistics: BatchStatistics | None = None,
    ) -> None:
        # Setup builds an engine for the reference exactly if a loss needs one.
        assert (reference is not None) == (Need.REFERENCE in objective.needs)
        self.objective = objective
        self.reference = reference
        self._statistics = statistics
        self.metrics = objective.metrics
        parts = (_part_column(metric) for metric in objective.part_metrics)
        self.columns = (*parts, *(column for column in _COLUMNS if column.metric in objective.metrics))
        self._per_token = Need.PER_TOKEN in objective.needs

    def targets(self, batches: Sequence[PairBatch]) -> Sequence[ReferenceScores | None]:
        """The reference's scores of each micro-batch."""
        if self.reference is None:
            return [None] * len(batches)
        return self.reference.score(batches, per_token=self._per_token)

    def outcome(self, batch: PairBatch, log_probs: Tensor, target: ReferenceScores | None) -> BatchOutcome:
        """Losses and metrics of the batch's N pairs."""
        inputs = LossInputs(
            policy=self._scores(batch, row_sums(log_probs, batch.target_counts), log_probs),
            reference=None if target is None else self._scores(batch, target.sums, target.per_token),
            statistics={} if self._statistics is None else self._statistics.means,
        )
        result = self.objective(inputs)
        # An evaluation uses the means of training and does not change them.
        if self._statistics is not None and torch.is_grad_enabled():
            self._statistics.add(result.statistics)
        return BatchOutcome(losses=result.losses, metrics=result.metrics)

    def size(self, batch: PairBatch) -> int:
        """N, the number of pairs."""
        return batch.num_pairs

    def _scores(self, batch: PairBatch, sums: Tensor, per_token: Tensor | None) -> PairScores:
        return PairScores(
            sums=sums,
            target_counts=batch.target_counts,
            per_token=per_token if self._per_token else None,
        )


def _part_column(metric: str) -> Column:
    """The column of one loss of a mix."""
    return Column(metric=metric, label=metric.removeprefix("loss/"), format=".4f", eval_format=".4f")

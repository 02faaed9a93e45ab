"""The DPO job: preference losses over pairs, most of them against a frozen reference.

log-probs (K,) -> row sums (N, 2) -> objective (a loss, or a mix of losses) -> N losses, metrics
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from minimind.data.packs import PairBatch
from minimind.engine.reference import Reference
from minimind.objective.losses import BatchShare, LossInputs, Need, Objective, PairScores
from minimind.objective.rows import ReferenceScores, row_sums
from minimind.ranks.world import World
from minimind.training.jobs.answer_metrics import (
    LENGTH_METRICS,
    LENGTH_PARTS,
    TOKEN_METRICS,
    answer_lengths,
    token_metrics,
)
from minimind.training.jobs.global_batch import gather_pairs
from minimind.training.jobs.job import BatchOutcome, Column, Job
from minimind.training.listeners.batch_statistics import BatchStatistics

_COLUMNS = (
    Column(metric="kl", label="kl", format=".4f", eval_format=".4f"),
    Column(metric="rewards/accuracies", label="accuracy", format=".2f", eval_format=".3f"),
    Column(metric="rewards/margins", label="margin", format="+.4f", eval_format="+.4f"),
)
# `BatchOutcome.values` of pairs; the last two with a reference only.
ROW_VALUES = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairTargets:
    """What a micro-batch's losses need besides the policy's log-probs.

    Attributes:
        reference: the reference's log-probs; None without a reference.
        shares: loss over the global batch -> what the whole batch gives to these pairs.
        mismatched: as in `LossInputs`.
    """

    reference: ReferenceScores | None = None
    mismatched: Tensor | None = None
    shares: Mapping[str, BatchShare] = dataclasses.field(default_factory=dict)


class DPOJob(Job[PairBatch, PairTargets]):
    """Direct Preference Optimization with any registered losses.

    Args:
        objective: the loss over pairs, or a mix of losses.
        reference: source of the reference's log-probs; None for losses that need none.
        statistics: running means over global batches; None for losses that need none.
        world: the ranks; only for losses over the global batch.
    """

    name = "dpo"
    item = "pairs"

    def __init__(
        self,
        *,
        objective: Objective,
        reference: Reference | None,
        statistics: BatchStatistics | None = None,
        world: World | None = None,
    ) -> None:
        # Setup builds an engine for the reference exactly if a loss needs one.
        assert (reference is not None) == (Need.REFERENCE in objective.needs)
        self.objective = objective
        self.reference = reference
        self._statistics = statistics
        self.metrics = (*objective.metrics, *LENGTH_METRICS)
        self.token_metrics = TOKEN_METRICS
        parts = (_part_column(metric) for metric in objective.part_metrics)
        self.columns = (*parts, *(column for column in _COLUMNS if column.metric in objective.metrics))
        self.metric_parts = objective.metric_parts
        if Need.LABELS in objective.needs:
            self.item = "answers"
            self.metric_parts = {**self.metric_parts, **LENGTH_PARTS}
        self._per_token = Need.PER_TOKEN in objective.needs
        self._mismatched = Need.MISMATCHED in objective.needs
        self.whole_batch = self._mismatched or Need.GLOBAL_BATCH in objective.needs
        self._world = world

    def targets(self, batches: Sequence[PairBatch]) -> Sequence[PairTargets]:
        """The reference's scores of each micro-batch."""
        if self.reference is None:
            return [PairTargets()] * len(batches)
        return [PairTargets(reference=one) for one in self.reference.score(batches, per_token=self._per_token)]

    def trained(self, batch: PairBatch) -> PairBatch:
        """The pairs; of answers with mismatched rows the answers alone: a loss has no gradient in the other rows."""
        return batch if batch.halves is None else batch.halves[0]

    def ahead(self, batch: PairBatch) -> PairBatch:
        """The pairs; or the mismatched rows alone."""
        return batch if batch.halves is None else batch.halves[1]

    def share(
        self,
        batches: Sequence[PairBatch],
        log_probs: Sequence[Tensor],
        targets: Sequence[PairTargets],
        weights: Sequence[Sequence[float]] | None = None,
    ) -> Sequence[PairTargets]:
        """Targets with what the global batch gives to each pair: its losses are computed once, of all ranks' pairs."""
        if self._mismatched:
            mean = self._mean_mismatched(batches, log_probs, targets, weights)
            return [dataclasses.replace(target, mismatched=mean) for target in targets]
        assert self._world is not None
        policy = torch.cat(
            [row_sums(self._split(one)[0], b.target_counts) for one, b in zip(log_probs, batches, strict=True)]
        )
        reference = [target.reference.sums for target in targets if target.reference is not None]
        # One table for one collective: the policy's sums, counts, the reference's sums; float64 holds all exactly.
        columns = (
            policy,
            torch.cat([b.target_counts for b in batches]),
            *([torch.cat(reference)] if reference else []),
        )
        gathered = gather_pairs(
            self._world,
            torch.cat([column.double() for column in columns], 1),
            *_of_pairs(batches, weights),
        )
        # In the order in which the columns were put together above.
        sums, counts, known = gathered.values.split((2, 3, 2 * bool(reference)), 1)
        both = [
            PairScores(sums=one.to(policy.dtype), target_counts=counts.long())
            for one in ((sums, known) if reference else (sums,))
        ]
        shares = self.objective.shares(
            LossInputs(
                policy=both[0],
                reference=both[1] if reference else None,
                statistics=self._means,
            )
        )
        # Back from the global batch to the micro-batches, whose backward needs the shares one by one.
        own = gathered.places.split([batch.num_pairs for batch in batches])
        return [
            dataclasses.replace(target, shares={name: share.of(places) for name, share in shares.items()})
            for target, places in zip(targets, own, strict=True)
        ]

    def _mean_mismatched(
        self,
        batches: Sequence[PairBatch],
        log_probs: Sequence[Tensor],
        targets: Sequence[PairTargets],
        weights: Sequence[Sequence[float]] | None,
    ) -> Tensor:
        """Mean log-ratio of the mismatched rows of the global batch, a float32 scalar; log_probs as of `ahead`."""
        assert self._world is not None
        ratios = []
        for batch, seen, target in zip(batches, log_probs, targets, strict=True):
            assert target.reference is not None
            policy = row_sums(self._split(seen)[0], self.ahead(batch).target_counts)[:, 0]
            ratios.append(policy - target.reference.sums[:, 1])
        gathered = gather_pairs(self._world, torch.cat(ratios).double()[:, None], *_of_pairs(batches, weights))
        return gathered.values.mean().float()

    def outcome(self, batch: PairBatch, log_probs: Tensor, target: PairTargets) -> BatchOutcome:
        """Losses and metrics of the batch's N pairs."""
        # The reference's scores are those of the same first rows.
        batch, labels = self.trained(batch), batch.labels
        known = target.reference
        log_probs, collisions, distributions = self._split(log_probs)
        policy = self._scores(batch, row_sums(log_probs, batch.target_counts), log_probs)
        if collisions is not None:
            policy = dataclasses.replace(policy, collision_sums=row_sums(collisions, batch.target_counts))
        inputs = LossInputs(
            policy=policy,
            reference=None if known is None else self._scores(batch, known.sums, known.per_token),
            statistics=self._means,
            scores=batch.scores,
            labels=labels,
            mismatched=target.mismatched,
            shares=target.shares,
        )
        result = self.objective(inputs)
        # An evaluation uses the means of training and does not change them.
        if self._statistics is not None and torch.is_grad_enabled():
            self._statistics.add(result.statistics)
        return BatchOutcome(
            losses=result.losses,
            metrics={**result.metrics, **answer_lengths(batch.target_counts, labels)},
            token_metrics=token_metrics(policy.sums, batch.target_counts, distributions, labels),
            values=_row_values(policy.sums, None if known is None else known.sums),
        )

    def _split(self, columns: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Log-probs (K,), and what the policy's scorer gives beside them: collisions (K,), distributions (K, 2)."""
        if columns.dim() == 1:
            return columns, None, None
        # Column 0 has the gradient; metrics and weights beside it must not add to it.
        first = 1 + (Need.COLLISIONS in self.objective.needs)
        others = columns.detach()
        collisions = others[:, 1].contiguous() if first > 1 else None
        return columns[:, 0].contiguous(), collisions, others[:, first:] if others.shape[1] > first else None

    @property
    def _means(self) -> Mapping[str, Tensor]:
        return {} if self._statistics is None else self._statistics.means

    def size(self, batch: PairBatch) -> int:
        """N, the number of pairs."""
        return batch.num_pairs

    def _scores(self, batch: PairBatch, sums: Tensor, per_token: Tensor | None) -> PairScores:
        return PairScores(
            sums=sums,
            target_counts=batch.target_counts,
            per_token=per_token if self._per_token else None,
        )


def _row_values(policy: Tensor, reference: Tensor | None) -> dict[str, Tensor]:
    """The summed log-probs of both rows under each model, by the names in `ROW_VALUES`; only views of (N, 2)."""
    of_reference = () if reference is None else reference.unbind(1)
    return dict(zip(ROW_VALUES, (*policy.detach().unbind(1), *of_reference), strict=False))


def _of_pairs(
    batches: Sequence[PairBatch], weights: Sequence[Sequence[float]] | None
) -> tuple[list[int], list[float] | None]:
    """Index and weight of each pair of several batches."""
    indices = [index for batch in batches for index in batch.indices]
    return indices, None if weights is None else [weight for of_batch in weights for weight in of_batch]


def _part_column(metric: str) -> Column:
    """The column of one loss of a mix."""
    return Column(metric=metric, label=metric.removeprefix("loss/"), format=".4f", eval_format=".4f")

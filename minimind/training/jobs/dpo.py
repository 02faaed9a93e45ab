"""One global step: where reference, policy and objective meet.

micro-batches -> reference's row log-probs -> policy's -> losses -> backward, step
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from minimind.data.packs import PackedPairs, PaddedPairs, PairBatch
from minimind.engine.policy import Policy
from minimind.engine.reference import RowReference
from minimind.errors import TrainingError
from minimind.objective.dpo import PairOutcomes, pair_outcomes, row_lengths, row_log_probs, row_means, row_sums
from minimind.ranks.process import all_reduce, gather
from minimind.training.metrics import MetricSums

# How far a row's summed log-prob may be off for no other reason than rounding, over the square root of its targets:
# a row of one target may be off by as much, the mean of a row of 100 by a tenth of it.
START_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2, "float16": 0.1}
# Largest difference between the mean log-probs of a row in two layouts that rounding explains.
LAYOUT_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """How log-probs become a loss.

    Attributes:
        beta: strength of the pull towards the reference.
        average_log_prob: a row's mean log-prob instead of its sum.
    """

    beta: float
    average_log_prob: bool

    def outcomes(self, batch: PairBatch, log_probs: Tensor, reference: Tensor) -> PairOutcomes:
        """Losses and rewards of a batch's N pairs.

        Args:
            log_probs: the policy's, of the batch's targets, (K,) float32.
            reference: the reference's, summed over each row, (N, 2) float32.
        """
        counts = batch.target_counts
        policy = row_sums(log_probs, counts)
        if self.average_log_prob:
            policy, reference = row_means(policy, counts), row_means(reference, counts)
        return pair_outcomes(policy, reference, self.beta)


def train_step(
    policy: Policy, reference: RowReference, objective: Objective, batches: Sequence[PairBatch], sums: MetricSums
) -> None:
    """Train on one global step's micro-batches: on the mean loss of their pairs, however they are split.

    Raises:
        TrainingError: on every rank, before any weight changes, if the gradient is not finite; it tells which of this
            rank's micro-batches were.
    """
    batches = [batch.to_device(policy.world.device) for batch in batches]
    watch = policy.world.watch
    watch.enter("reference")
    reference_rows = reference.row_sums(batches)
    pairs = sum(batch.num_pairs for batch in batches)
    finite: list[Tensor] = []  # stays on the device: nobody asks unless the step fails
    for number, (batch, rows) in enumerate(zip(batches, reference_rows, strict=True), start=1):
        watch.enter("policy forward")
        log_probs, aux_loss = policy.score(batch)
        outcomes = objective.outcomes(batch, log_probs, rows)
        loss = outcomes.losses.mean() + aux_loss
        finite.append(log_probs.detach().isfinite().all() & loss.detach().isfinite())
        watch.enter("backward")
        policy.backward(loss * batch.num_pairs / pairs, last=number == len(batches))
        watch.enter("optimizer step")
        try:
            policy.step()
        except TrainingError as error:
            error.finite = torch.stack(finite).tolist()
            raise
        sums.add(outcomes, aux_loss, batch.row_tokens)


@torch.no_grad()
def check_start(policy: Policy, reference: RowReference, batch: PairBatch, dtype: str) -> None:
    """Stop a run whose policy, with its start weights, is not its reference: margins would not start at 0.

    Compared in eval mode, since a model with dropout is two different models while it trains.

    Raises:
        TrainingError: on every rank, if any rank's rows differ.
    """
    batch = batch.to_device(policy.world.device)
    policy.eval()
    log_probs, _ = policy.score(batch)
    policy.train()
    lengths = row_lengths(batch.target_counts).clamp_min(1)
    off = (row_sums(log_probs, batch.target_counts) - reference.row_sums([batch])[0]).abs()
    off = off.nan_to_num(nan=torch.inf)
    pair = int((off / lengths.sqrt()).max(1).values.argmax())
    mine = (float((off / lengths.sqrt())[pair].max()), float((off / lengths)[pair].max()), batch.lines[pair])
    scaled, worst, line = max(gather(policy.world, mine))
    if scaled > START_TOLERANCE[dtype]:
        error = TrainingError(reference.mismatch(worst, line))
        error.agreed = True
        raise error


@torch.no_grad()
def layouts_agree(policy: Policy, packed: PackedPairs, padded: PaddedPairs) -> bool:
    """Whether the same pairs score the same packed as padded, on every rank.

    A model may bend attention or logits in a way that a pack does not know of; this shows it before training.
    """
    rows = []
    policy.eval()
    for batch in (packed, padded):
        moved = batch.to_device(policy.world.device)
        rows.append(row_log_probs(policy.score(moved)[0], moved.target_counts, average_log_prob=True))
    policy.train()
    difference = all_reduce((rows[0] - rows[1]).abs().max(), "max")
    return bool(difference <= LAYOUT_TOLERANCE[policy.dtype])


@torch.no_grad()
def eval_step(
    policy: Policy,
    reference: RowReference,
    objective: Objective,
    batch: PairBatch,
    weights: list[float],
    sums: MetricSums,
) -> None:
    """Add one batch's outcomes to the sums, without training."""
    batch = batch.to_device(policy.world.device)
    (rows,) = reference.row_sums([batch])
    log_probs, aux_loss = policy.score(batch)
    outcomes = objective.outcomes(batch, log_probs, rows)
    weight = torch.tensor(weights, dtype=torch.float64, device=policy.world.device)
    sums.add(outcomes, aux_loss, batch.row_tokens if any(weights) else 0, weight)

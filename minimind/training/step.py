"""One global step: where reference, policy and objective meet.

micro-batches -> reference log-probs -> policy log-probs -> losses -> backward, step
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from minimind.data.pack import PairBatch, to_device
from minimind.engine.policy import Policy
from minimind.engine.process import all_reduce
from minimind.engine.reference import Reference
from minimind.errors import TrainingError
from minimind.objective.dpo import PairOutcomes, pair_outcomes, row_log_probs
from minimind.training.metrics import MetricSums

# How far policy and reference may be apart before the first update, as a row's mean log-prob per token.
START_TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2, "float16": 1e-2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """How log-probs become a loss.

    Attributes:
        beta: strength of the pull towards the reference.
        average_log_prob: a row's mean log-prob instead of its sum.
    """

    beta: float
    average_log_prob: bool

    def outcomes(self, batch: PairBatch, policy: Tensor, reference: Tensor) -> PairOutcomes:
        """Losses and rewards of a batch's pairs from its targets' log-probs, each (K,) float32."""
        counts, average = batch.target_counts, self.average_log_prob
        return pair_outcomes(
            row_log_probs(policy, counts, average), row_log_probs(reference, counts, average), self.beta
        )


def train_step(
    policy: Policy, reference: Reference, objective: Objective, batches: Sequence[PairBatch], sums: MetricSums
) -> None:
    """Train on one global step's micro-batches."""
    batches = [to_device(batch, policy.world.device) for batch in batches]
    reference_log_probs = reference.score_step(batches)
    for batch, reference_part in zip(batches, reference_log_probs, strict=True):
        log_probs, aux_loss = policy.score(batch)
        outcomes = objective.outcomes(batch, log_probs, reference_part)
        policy.backward(outcomes.losses.mean() + aux_loss)
        policy.step()
        sums.add(outcomes, aux_loss, batch.row_tokens)


@torch.no_grad()
def check_start(policy: Policy, reference: Reference, batch: PairBatch, dtype: str) -> None:
    """Stop a run whose policy is not its reference at the start: its loss would not be ln 2, its margins not 0.

    Compared in eval mode, since a model with dropout is two different models while it trains.

    Raises:
        TrainingError: on every rank, if any rank's rows differ.
    """
    batch = to_device(batch, policy.world.device)
    policy.eval()
    log_probs = (policy.score(batch)[0], reference.score(batch))
    policy.train()
    one, other = (row_log_probs(part, batch.target_counts, average_log_prob=True) for part in log_probs)
    worst = float(all_reduce((one - other).abs().max().nan_to_num(nan=torch.inf), "max"))
    if worst > START_TOLERANCE[dtype]:
        error = TrainingError(
            f"before the first update policy and reference differ by {worst:.3g} in a row's mean log-prob, so the loss "
            "would not start at ln 2: they are not the same model, or its log-probs are not finite. Check the weights."
        )
        error.agreed = True
        raise error


@torch.no_grad()
def eval_step(
    policy: Policy, reference: Reference, objective: Objective, batch: PairBatch, weights: list[float], sums: MetricSums
) -> None:
    """Add one batch's outcomes to the sums, without training."""
    batch = to_device(batch, policy.world.device)
    reference_log_probs = reference.score(batch)
    log_probs, aux_loss = policy.score(batch)
    outcomes = objective.outcomes(batch, log_probs, reference_log_probs)
    weight = torch.tensor(weights, dtype=torch.float64, device=policy.world.device)
    sums.add(outcomes, aux_loss, batch.row_tokens if any(weights) else 0, weight)

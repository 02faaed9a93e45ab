"""The check of policy and reference before the first update.

policy, reference, a few pairs -> check_start  -> the policy with its start weights is the reference, or an error
                               -> check_finite -> log-probs of both are finite: the reference is another model
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minimind.data.packs import PairBatch
from minimind.engine.policy import Policy
from minimind.engine.reference import Reference
from minimind.errors import TrainingError
from minimind.objective.losses import Objective
from minimind.objective.rows import row_lengths, row_sums
from minimind.ranks.collectives import gather

# Largest difference of a row's summed log-prob, divided by the square root of its number of targets, that rounding
# explains. Rounding errors of single targets add up like a random walk, hence the square root.
START_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2, "float16": 0.1}


@torch.no_grad()
def check_start(
    policy: Policy,
    reference: Reference,
    batch: PairBatch,
    dtype: str,
    objective: Objective,
    place: Callable[[int], str],
) -> None:
    """Stop a run whose policy, with its start weights, is not its reference: the margins would not start at 0.

    The comparison is made in eval mode, because dropout makes two forwards of one model differ.

    Args:
        place: where a pair is from, by its `PreferencePair.index`, for the message.

    Raises:
        TrainingError: on every rank, if the rows of any rank differ.
    """
    batch = batch.to_device(policy.world.device)
    lengths = row_lengths(batch.target_counts).clamp_min(1)
    own, theirs = _sums(policy, reference, batch)
    difference = (own - theirs).abs().nan_to_num(nan=torch.inf)
    pair = int((difference / lengths.sqrt()).max(1).values.argmax())
    mine = (
        float((difference / lengths.sqrt())[pair].max()),
        float((difference / lengths)[pair].max()),
        batch.indices[pair],
    )
    scaled, worst, index = max(gather(policy.world, mine))
    if scaled > START_TOLERANCE[dtype]:
        raise TrainingError(reference.mismatch(worst, index, place(index), objective.start_value()), agreed=True)


@torch.no_grad()
def check_finite(policy: Policy, reference: Reference, batch: PairBatch, place: Callable[[int], str]) -> None:
    """Stop a run with another model as its reference, if the log-probs of one of the two are not finite.

    Args:
        place: where a pair is from, by its `PreferencePair.index`, for the message.

    Raises:
        TrainingError: on every rank, if the rows of any rank are not finite.
    """
    batch = batch.to_device(policy.world.device)
    wrong = [
        (who, batch.indices[pair])
        for who, sums in zip(("policy", "reference"), _sums(policy, reference, batch), strict=True)
        for pair, finite in enumerate(sums.isfinite().all(1).tolist())
        if not finite
    ]
    for found in gather(policy.world, wrong[:1]):
        for who, index in found:
            raise TrainingError(
                f"the {who}'s log-probs of {place(index)} are not finite before the first update; check its weights, "
                "or use another --dtype",
                agreed=True,
            )


def _sums(policy: Policy, reference: Reference, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Row sums of policy and reference, both (N, 2) float32, in eval mode."""
    policy.eval()
    log_probs, _ = policy.score(batch)
    policy.train()
    return row_sums(log_probs, batch.target_counts), reference.score([batch])[0].sums

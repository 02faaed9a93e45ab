"""The check of policy and reference before the first update.

policy, reference, a few pairs -> check_start -> the policy with its start weights is the reference, or an error
"""

from __future__ import annotations

from collections.abc import Callable

import torch

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
    policy.eval()
    log_probs, _ = policy.score(batch)
    policy.train()
    lengths = row_lengths(batch.target_counts).clamp_min(1)
    difference = (row_sums(log_probs, batch.target_counts) - reference.score([batch])[0].sums).abs()
    difference = difference.nan_to_num(nan=torch.inf)
    pair = int((difference / lengths.sqrt()).max(1).values.argmax())
    mine = (
        float((difference / lengths.sqrt())[pair].max()),
        float((difference / lengths)[pair].max()),
        batch.indices[pair],
    )
    scaled, worst, index = max(gather(policy.world, mine))
    if scaled > START_TOLERANCE[dtype]:
        raise TrainingError(reference.mismatch(worst, index, place(index), objective.start_value()), agreed=True)

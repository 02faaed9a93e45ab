"""Checks of the models before the first update.

policy, reference, a few pairs -> check_start     the policy with its start weights is the reference
policy, one pair in two layouts -> layouts_agree  the model computes the same packed as padded
"""

from __future__ import annotations

import torch

from minimind.data.packs import PackedPairs, PaddedPairs, PairBatch
from minimind.engine.policy import Policy
from minimind.engine.reference import Reference
from minimind.errors import TrainingError
from minimind.objective.losses import PreferenceLoss
from minimind.objective.rows import row_lengths, row_log_probs, row_sums
from minimind.ranks.collectives import all_reduce, gather

# Largest difference of a row's summed log-prob, divided by the square root of its number of targets, that rounding
# explains. Rounding errors of single targets add up like a random walk, hence the square root.
START_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2, "float16": 0.1}
# Largest difference between the mean log-probs of a row in two layouts that rounding explains.
LAYOUT_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}


@torch.no_grad()
def check_start(policy: Policy, reference: Reference, batch: PairBatch, dtype: str, loss: PreferenceLoss) -> None:
    """Stop a run whose policy, with its start weights, is not its reference: the margins would not start at 0.

    The comparison is made in eval mode, because dropout makes two forwards of one model differ.

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
        batch.lines[pair],
    )
    scaled, worst, line = max(gather(policy.world, mine))
    if scaled > START_TOLERANCE[dtype]:
        raise TrainingError(reference.mismatch(worst, line, loss.start_value()), agreed=True)


@torch.no_grad()
def layouts_agree(policy: Policy, packed: PackedPairs, padded: PaddedPairs) -> bool:
    """Whether the same pairs score the same packed as padded, on every rank.

    A model may change attention or logits in a way that a pack does not know of. This comparison detects it.
    """
    rows = []
    policy.eval()
    for batch in (packed, padded):
        moved = batch.to_device(policy.world.device)
        rows.append(row_log_probs(policy.score(moved)[0], moved.target_counts, average_log_prob=True))
    policy.train()
    difference = all_reduce((rows[0] - rows[1]).abs().max(), "max")
    return bool(difference <= LAYOUT_TOLERANCE[policy.dtype])

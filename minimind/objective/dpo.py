"""The DPO loss (Rafailov et al., 2023, equation 7): pure functions of tensors.

    per-token log-probs (2N, T), mask -> dpo_loss -> scalar                    MiniMind's form, for comparison
    K log-probs + counts -> row_sums -> row_means (N, 2) -> pair_outcomes -> N losses, rewards   the training path

For one pair with policy p and reference r, each a row's log-prob:

    loss = -log sigmoid(beta * ((p_chosen - p_rejected) - (r_chosen - r_rejected)))
    reward of a row = beta * (p - r)

A row's log-prob is the mean over its masked tokens (MiniMind) or their sum (the paper).
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo_loss(
    ref_log_probs: Tensor, policy_log_probs: Tensor, mask: Tensor, beta: float, average_log_prob: bool = True
) -> Tensor:
    """Mean DPO loss of N pairs, with MiniMind's signature.

    Args:
        ref_log_probs: (2N, T), the reference's log-prob of each token; N chosen rows, then N rejected rows.
        policy_log_probs: (2N, T), the policy's.
        mask: (2N, T), 1 where a token counts.
        beta: strength of the pull towards the reference.
        average_log_prob: a row's mean over its masked tokens (MiniMind) instead of the paper's sum.

    Returns: scalar float32.
    """
    mask = mask.float()
    tokens = mask.sum(1).clamp_min(1) if average_log_prob else 1.0
    policy = (policy_log_probs.float() * mask).sum(1) / tokens
    reference = (ref_log_probs.float() * mask).sum(1) / tokens
    pairs = len(mask) // 2
    policy_ratio = policy[:pairs] - policy[pairs:]
    reference_ratio = reference[:pairs] - reference[pairs:]
    return -F.logsigmoid(beta * (policy_ratio - reference_ratio)).mean()


def row_sums(log_probs: Tensor, target_counts: Tensor) -> Tensor:
    """Summed log-prob of each row of a pack.

    Args:
        log_probs: (K,) float32, in the pack's order: per pair the targets within the shared prefix, of the chosen
            half, of the rejected half.
        target_counts: (N, 3) int64, how many targets each of those has, K in all, which is not checked here. The
            prefix's targets count for both rows.

    Returns: (N, 2) float32: chosen, rejected.
    """
    # A segmented sum instead of index_add: its order is fixed on a GPU too. To check the lengths it would wait for the
    # GPU.
    sums = torch.segment_reduce(log_probs, "sum", lengths=target_counts.flatten(), initial=0, unsafe=True)
    sums = sums.view(-1, 3)
    return sums[:, :1] + sums[:, 1:]


def row_lengths(target_counts: Tensor) -> Tensor:
    """Targets of each row: (N, 3) int64 as in a pack -> (N, 2) int64: chosen, rejected."""
    return target_counts[:, :1] + target_counts[:, 1:]


def row_means(sums: Tensor, target_counts: Tensor) -> Tensor:
    """Mean log-prob of each row from its sum, both (N, 2) float32.

    A row without targets, which truncation can leave, counts as 0, as in MiniMind.
    """
    return sums / row_lengths(target_counts).clamp_min(1)


def row_log_probs(log_probs: Tensor, target_counts: Tensor, average_log_prob: bool) -> Tensor:
    """Log-prob of each row of a pack, (N, 2) float32: the mean over its targets, or their sum."""
    sums = row_sums(log_probs, target_counts)
    return row_means(sums, target_counts) if average_log_prob else sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairOutcomes:
    """What DPO says of N pairs; every tensor (N,) float32. Only `losses` carries a gradient.

    Attributes:
        losses: loss of each pair.
        chosen_rewards, rejected_rewards: beta * (policy - reference) of each row.
        chosen_log_probs, rejected_log_probs: the policy's log-prob of each row.
    """

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    chosen_log_probs: Tensor
    rejected_log_probs: Tensor

    @property
    def margins(self) -> Tensor:
        return self.chosen_rewards - self.rejected_rewards

    @property
    def accuracies(self) -> Tensor:
        """1 where the chosen row has the larger reward, 0 where it has the smaller, one half for a tie."""
        return (self.margins.sign() + 1) / 2


def pair_outcomes(policy: Tensor, reference: Tensor, beta: float) -> PairOutcomes:
    """Losses and rewards from row log-probs (N, 2) float32 of policy and reference."""
    rewards = beta * (policy - reference)
    detached = rewards.detach()
    return PairOutcomes(
        losses=-F.logsigmoid(rewards[:, 0] - rewards[:, 1]),
        chosen_rewards=detached[:, 0],
        rejected_rewards=detached[:, 1],
        chosen_log_probs=policy.detach()[:, 0],
        rejected_log_probs=policy.detach()[:, 1],
    )

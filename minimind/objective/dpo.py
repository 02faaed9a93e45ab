"""MiniMind's own form of the DPO loss, over padded rows. Training uses `losses.SigmoidLoss`: the same numbers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def dpo_loss(
    ref_log_probs: Tensor, policy_log_probs: Tensor, mask: Tensor, beta: float, average_log_prob: bool = True
) -> Tensor:
    """Mean DPO loss of N pairs (Rafailov et al., 2023, equation 7), with MiniMind's signature.

    Args:
        ref_log_probs: (2N, T), the reference's log-prob of each token; N chosen rows, then N rejected rows.
        policy_log_probs: (2N, T), the policy's log-prob of each token.
        mask: (2N, T), 1 where a token counts, else 0.
        beta: strength of the pull towards the reference.
        average_log_prob: use a row's mean over its masked tokens (MiniMind) instead of their sum (the paper).

    Returns: scalar float32.
    """
    # float32 throughout: a bf16 sum of some hundred log-probs would lose digits.
    mask = mask.float()
    tokens = mask.sum(1).clamp_min(1) if average_log_prob else 1.0
    policy = (policy_log_probs.float() * mask).sum(1) / tokens
    reference = (ref_log_probs.float() * mask).sum(1) / tokens
    pairs = len(mask) // 2
    policy_ratio = policy[:pairs] - policy[pairs:]
    reference_ratio = reference[:pairs] - reference[pairs:]
    return -F.logsigmoid(beta * (policy_ratio - reference_ratio)).mean()

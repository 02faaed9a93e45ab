"""Log-probs of K target tokens -> one log-prob per row of each pair: pure functions of tensors.

    (K,) log-probs + (N, 3) counts -> row_sums -> (N, 2) sums -> row_means -> (N, 2) means

A pair's targets are counted in three parts: in the shared prefix, in the rest of chosen, in the rest of rejected. The
prefix's targets belong to both rows. Shape letters: N pairs, K targets.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceScores:
    """Log-probs that the frozen reference gives to the targets of one micro-batch, without gradient.

    Attributes:
        sums: (N, 2) float32, summed over the targets of each row: chosen, rejected.
        per_token: (K,) float32 in the batch's target order; None unless the loss asked for it.
    """

    sums: Tensor
    per_token: Tensor | None = None


def row_sums(log_probs: Tensor, target_counts: Tensor) -> Tensor:
    """Summed log-prob of each row.

    Args:
        log_probs: (K,) float32 in the batch's target order: per pair the targets of the shared prefix, of chosen, of
            rejected.
        target_counts: (N, 3) int64, the number of targets in each part. Their sum must be K; it is not checked.

    Returns: (N, 2) float32: chosen, rejected.
    """
    # segment_reduce adds in a fixed order on a GPU too; index_add does not. `unsafe` skips the check of the lengths,
    # which would make the host wait for the GPU.
    sums = torch.segment_reduce(log_probs, "sum", lengths=target_counts.flatten(), initial=0, unsafe=True)
    # Columns: prefix, chosen, rejected. The prefix is added to both rows.
    sums = sums.view(-1, 3)
    return sums[:, :1] + sums[:, 1:]


def head_sums(log_probs: Tensor, target_counts: Tensor) -> Tensor:
    """Summed log-prob of each row's head: as many of its first targets as the shorter row of the pair has.

    Args:
        log_probs: (K,) in the batch's target order, as in `row_sums`.
        target_counts: (N, 3) int64.

    Returns: (N, 2): chosen, rejected. The head of the shorter row is the whole row.
    """
    prefix, own = target_counts[:, :1], target_counts[:, 1:]
    # The prefix is in both heads, so they end after equally many targets of the rest.
    head = own.amin(1, keepdim=True)
    lengths = torch.cat((prefix, head, own[:, :1] - head, head, own[:, 1:] - head), 1)
    # Five runs of targets a pair, as they lie in the batch: prefix, head and tail of chosen, head and tail of rejected.
    # `unsafe` as in `row_sums`.
    sums = torch.segment_reduce(log_probs, "sum", lengths=lengths.flatten(), initial=0, unsafe=True).view(-1, 5)
    return sums[:, :1] + sums[:, 1:4:2]


def row_lengths(target_counts: Tensor) -> Tensor:
    """Number of targets in each row: (N, 3) int64 counts -> (N, 2) int64: chosen, rejected."""
    return target_counts[:, :1] + target_counts[:, 1:]


def row_means(sums: Tensor, target_counts: Tensor) -> Tensor:
    """Mean log-prob of each row from its sum, both (N, 2) float32.

    A row without targets has a mean of 0, as in MiniMind. Truncation can produce such a row.
    """
    return sums / row_lengths(target_counts).clamp_min(1)


def row_log_probs(log_probs: Tensor, target_counts: Tensor, average_log_prob: bool) -> Tensor:
    """Log-prob of each row, (N, 2) float32: the mean over its targets, or their sum."""
    sums = row_sums(log_probs, target_counts)
    return row_means(sums, target_counts) if average_log_prob else sums

"""Metrics of answers that do not depend on the loss: lengths, likelihood and distributions of their tokens.

row sums (N, 2), counts (N, 3), distributions (K, 2) of logged steps -> answer_lengths, token_metrics -> BatchOutcome

Tokens are those that the loss counts. An earlier answer that both rows of a pair share counts in both, so that packed
and padded batches have the same values. Of answers with labels, "chosen" are the desirable ones and "rejected" the
others; each is in the first row of its item, and the second row has no target. Shape letters: N items, K targets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minimind.objective.rows import row_lengths, row_sums
from minimind.training.jobs.job import TokenSums

LENGTH_METRICS = ("lengths/chosen", "lengths/rejected")
# Of answers with labels: metric -> the metric with the part that it is the mean of.
LENGTH_PARTS = {"lengths/chosen": "desirable", "lengths/rejected": "undesirable"}
TOKEN_METRICS = ("nll", "entropy", "token_accuracy")


def answer_lengths(target_counts: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
    """The metrics named in `LENGTH_METRICS`, each (N,) float32, from (N, 3) int64 counts.

    Args:
        labels: (N,) bool of answers with labels: a length is 0 where the answer is not in the metric's part.
    """
    chosen, rejected = row_lengths(target_counts).float().unbind(1)
    if labels is not None:
        chosen, rejected = chosen * labels, chosen * ~labels
    return dict(zip(LENGTH_METRICS, (chosen, rejected), strict=True))


def token_metrics(
    sums: Tensor, target_counts: Tensor, distributions: Tensor | None, labels: Tensor | None = None
) -> dict[str, TokenSums]:
    """The metrics named in `TOKEN_METRICS`; without distributions `nll` alone.

    Args:
        sums: (N, 2) the policy's summed log-probs of chosen and rejected.
        target_counts: (N, 3) int64.
        distributions: (K, 2) of each target, without gradient: entropy in nats, and 1 where no token is likelier than
            the target, else 0.
        labels: (N,) bool of answers with labels: `nll` is that of the desirable ones.
    """
    lengths = row_lengths(target_counts).to(sums.dtype)
    likely = torch.stack((-sums.detach()[:, 0], lengths[:, 0]))
    if labels is not None:
        likely = torch.where(labels, likely, 0)
    metrics = {"nll": TokenSums(sums=likely[0], counts=likely[1])}
    if distributions is not None:
        for name, column in zip(TOKEN_METRICS[1:], distributions.unbind(1), strict=True):
            of_rows = row_sums(column.contiguous(), target_counts)
            metrics[name] = TokenSums(sums=of_rows.sum(1), counts=lengths.sum(1))
    return metrics

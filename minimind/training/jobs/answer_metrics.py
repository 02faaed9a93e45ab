"""Metrics of a pair's answers that do not depend on the loss: lengths, likelihood and distributions of their tokens.

row sums (N, 2), counts (N, 3), distributions (K, 2) of logged steps -> answer_lengths, token_metrics -> BatchOutcome

Tokens are those that the loss counts. An earlier answer that both rows of a pair share counts in both, so that packed
and padded batches have the same values. Shape letters: N pairs, K targets.
"""

from __future__ import annotations

from torch import Tensor

from minimind.objective.rows import row_lengths, row_sums
from minimind.training.jobs.job import TokenSums

LENGTH_METRICS = ("lengths/chosen", "lengths/rejected")
TOKEN_METRICS = ("nll", "entropy", "token_accuracy")


def answer_lengths(target_counts: Tensor) -> dict[str, Tensor]:
    """The metrics named in `LENGTH_METRICS`, each (N,) float32, from (N, 3) int64 counts."""
    chosen, rejected = row_lengths(target_counts).float().unbind(1)
    return dict(zip(LENGTH_METRICS, (chosen, rejected), strict=True))


def token_metrics(sums: Tensor, target_counts: Tensor, distributions: Tensor | None) -> dict[str, TokenSums]:
    """The metrics named in `TOKEN_METRICS`; without distributions `nll` alone.

    Args:
        sums: (N, 2) the policy's summed log-probs of chosen and rejected.
        target_counts: (N, 3) int64.
        distributions: (K, 2) of each target, without gradient: entropy in nats, and 1 where no token is likelier than
            the target, else 0.
    """
    lengths = row_lengths(target_counts).to(sums.dtype)
    metrics = {"nll": TokenSums(sums=-sums.detach()[:, 0], counts=lengths[:, 0])}
    if distributions is not None:
        for name, column in zip(TOKEN_METRICS[1:], distributions.unbind(1), strict=True):
            of_rows = row_sums(column.contiguous(), target_counts)
            metrics[name] = TokenSums(sums=of_rows.sum(1), counts=lengths.sum(1))
    return metrics

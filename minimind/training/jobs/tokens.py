"""Jobs over tokens: pretraining, where all count, and supervised fine-tuning, where those of the assistant do.

log-probs (K,) -> objective -> K losses; perplexity, entropy and accuracy of the tokens
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from minimind.data.packs import PairBatch
from minimind.objective.token_mean import TokenMean
from minimind.ranks.collectives import all_reduce
from minimind.ranks.world import World
from minimind.training.jobs.job import BatchOutcome, Column, Job, TokenSums

_COLUMNS = (
    Column(metric="perplexity", label="perplexity", format=".2f", eval_format=".3f"),
    Column(metric="token_accuracy", label="accuracy", format=".3f", eval_format=".4f"),
)
DERIVED_METRICS = ("perplexity",)
_TOKEN_METRICS = ("entropy", "token_accuracy")
# Largest exponent of a float.
_MOST = 700.0


class TokenJob(Job[PairBatch, None]):
    """The cross-entropy of the tokens that count. An item is a token.

    Args:
        name: of the job.
        examples: what its rows are, for messages.
        objective: the loss of a token.
        world: the ranks.
    """

    item = "trained_tokens"
    metrics = ()
    token_metrics = _TOKEN_METRICS
    columns = _COLUMNS

    def __init__(self, *, name: str, examples: str, objective: TokenMean, world: World) -> None:
        self.name, self.examples = name, examples
        self._objective, self._world = objective, world

    def targets(self, batches: Sequence[PairBatch]) -> Sequence[None]:
        """Nothing besides the policy's log-probs."""
        return [None] * len(batches)

    def outcome(self, batch: PairBatch, log_probs: Tensor, target: None) -> BatchOutcome:
        """Losses and metrics of the batch's K tokens."""
        known: dict[str, TokenSums] = {}
        if log_probs.dim() > 1:
            log_probs, *columns = log_probs.unbind(1)
            counts = torch.ones_like(log_probs, requires_grad=False)
            known = {
                name: TokenSums(sums=column.detach(), counts=counts)
                for name, column in zip(_TOKEN_METRICS, columns, strict=True)
            }
        return BatchOutcome(losses=self._objective.losses(log_probs), metrics={}, token_metrics=known)

    def size(self, batch: PairBatch) -> int:
        """K, the number of tokens that count."""
        return len(batch.target_ids)

    def weights(self, batches: Sequence[PairBatch]) -> Sequence[Tensor | float]:
        """Shares of the tokens of all ranks, or equal ones under `--loss_mean micro_batch`."""
        if self._objective.depends_on_split:
            return [1 / len(batches)] * len(batches)
        # Ranks have different numbers of tokens. The counts stay on the device, so that the host does not wait for it.
        own = torch.tensor([self.size(batch) for batch in batches], dtype=torch.float64)
        own = own.to(self._world.device, non_blocking=True)
        total = all_reduce(own.sum())
        # Times the ranks, because DeepSpeed takes the mean of their gradients, and the sum of the shares is wanted.
        return list((own * self._world.size / total).float().unbind())

    def item_weights(self, batch: PairBatch, weights: Tensor) -> Tensor:
        """(K,) each token has the weight of its row."""
        return weights.repeat_interleave(batch.target_counts.sum(1), output_size=len(batch.target_ids))

    def derived(self, means: Mapping[str, float]) -> dict[str, float]:
        """The perplexity."""
        return {DERIVED_METRICS[0]: math.exp(min(means[f"{self.name}_loss"], _MOST))}

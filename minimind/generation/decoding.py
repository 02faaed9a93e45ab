"""How an answer is decoded: greedy, or sampled with a seed.

    Decoding, seed of each row -> processors -> logits (B, V) of each new token, changed so that the largest is taken

Sampling is done by noise: the largest of logits + Gumbel noise is a sample of their softmax (Gumbel, 1954). Each row
has its own noise, so an answer depends on its prompt and seed alone, not on the rows beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """How answers are decoded.

    Attributes:
        max_new_tokens: an answer ends after so many tokens at the latest.
        temperature: 0: the most likely token is taken (greedy); else logits are divided by it and a token is sampled.
        top_p: of the sampled tokens only the most likely, whose probabilities add up to this.
        top_k: of the sampled tokens only this many; None: all.
        repetition_penalty: logits of tokens that the row already has are divided by it (negative ones multiplied).
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    repetition_penalty: float = 1.0

    def processors(self, seeds: Sequence[int]) -> LogitsProcessorList:
        """What is done to the logits of each new token, in order.

        Args:
            seeds: of each row; unused if greedy.
        """
        found = LogitsProcessorList()
        if self.repetition_penalty != 1:
            found.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.temperature == 0:
            return found
        found.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k is not None:
            found.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            found.append(TopPLogitsWarper(self.top_p))
        found.append(GumbelNoise(seeds))
        return found


class GumbelNoise(LogitsProcessor):
    """Adds to the logits of each row the noise of its own seed: the largest sum is a sample."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits (B, V) -> float32 (B, V); those that are -inf stay it."""
        # On the CPU, so that every device samples the same tokens. float64: no uniform number of it is rounded to 1.
        uniform = torch.stack(
            [torch.rand(scores.shape[-1], dtype=torch.float64, generator=one) for one in self._generators]
        )
        noise = -torch.log(-torch.log(uniform.clamp_min(torch.finfo(torch.float64).tiny)))
        return scores.float() + noise.float().to(scores.device)

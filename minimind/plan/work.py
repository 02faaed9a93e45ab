"""Useful operations of training steps: what exact training of these rows needs, and nothing that a trainer adds to it.

configuration, tensor shapes -> ModelWork;  a batch -> forward_flops -> x passes: forward, backward, reference

Every token of a pack counts once, a shared prefix too; in attention the pairs of tokens that see each other; the output
head, and the part of the last block after attention, at target positions; of experts those that a token is routed to.
Padded, masked and recomputed operations do not count, nor do norms, softmax, activations, adapters and the optimizer. A
multiplication and an addition are two operations.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from transformers import PretrainedConfig

from minimind.data.packs import Batch, PackedPairs, PaddedPairs
from minimind.plan.sizes import ModelSizes, given_size

# Names of tensors that are looked up, not multiplied.
_LOOKED_UP = ("embed", "wte", "wpe", "lm_head")
_EXPERT = ".experts."
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelWork:
    """Sizes of a model's products, in multiplications for a token.

    Attributes:
        to_attention: of a layer's weights for queries, keys and values.
        after: of a layer's other weights.
        head: of the output head.
        scores: of one layer's attention scores and values, for a pair of tokens.
    """

    layers: int
    to_attention: float
    after: float
    head: float
    scores: float

    @classmethod
    def of(cls, config: PretrainedConfig, shapes: Mapping[str, tuple[int, ...]]) -> ModelWork:
        """Of a model with this configuration and these tensors.

        Raises:
            WeightsError: the configuration lacks a required size, for example the number of heads (Mamba).
        """
        sizes = ModelSizes.of(config, shapes)
        text = config.get_text_config()
        experts = max((given_size(text, name) for name in _EXPERTS), default=0)
        share = min(1.0, sizes.routed / experts) if sizes.routed and experts else 1.0
        used = sum(
            math.prod(shape) * (share if _EXPERT in name else 1.0)
            for name, shape in shapes.items()
            if len(shape) > 1 and not any(word in name.lower() for word in _LOOKED_UP)
        )
        to_attention = sizes.hidden * (sizes.query + 2 * sizes.key)
        return cls(
            layers=sizes.layers,
            to_attention=to_attention,
            after=max(0.0, used / sizes.layers - to_attention),
            head=sizes.hidden * sizes.vocab,
            scores=2 * sizes.query,
        )

    def forward_flops(self, batch: Batch) -> float:
        """Useful operations of one forward over a batch whose tensors are on the host."""
        targets = len(batch.target_ids)
        tokens, seen = _tokens(batch)
        weights = self.layers * self.to_attention * tokens + self.after * ((self.layers - 1) * tokens + targets)
        return 2.0 * (weights + self.layers * self.scores * seen + self.head * targets)


def _tokens(batch: Batch) -> tuple[int, int]:
    """Tokens that must be computed, and pairs of (query, key) in which the query sees the key; a token sees itself."""
    if isinstance(batch, PackedPairs):
        return len(batch.token_ids), sum(_seen(*segment) for segment in batch.segments)
    assert isinstance(batch, PaddedPairs)
    # Which tokens two rows share is not known.
    lengths = [int(length) for length in batch.attention_mask.sum(1).tolist()]
    return sum(lengths), sum(length * (length + 1) // 2 for length in lengths)


def _seen(prefix: int, chosen: int, rejected: int) -> int:
    row = prefix + chosen
    return row * (row + 1) // 2 + rejected * prefix + rejected * (rejected + 1) // 2

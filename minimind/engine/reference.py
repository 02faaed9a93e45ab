"""The reference: frozen, in eval mode, without an optimizer, always a ZeRO-3 inference shard.

batch -> score -> (K,) log-probs, no gradient
"""

from __future__ import annotations

from collections.abc import Sequence

import deepspeed
import torch
from torch import Tensor

from minimind.data.pack import PackedPairs, PaddedPairs, PairBatch, join, to_device
from minimind.engine.build import build_scorer
from minimind.engine.ds_config import ResolvedConfig
from minimind.engine.process import World, all_reduce
from minimind.objective.dpo import row_log_probs
from minimind.weights.empty import restore_buffers
from minimind.weights.sources import WeightSource

# Tokens of one forward at most, counted before packing: without a gradient a forward's memory is a few layers' worth.
_FORWARD_TOKENS = 2**16

# Largest difference between the mean log-probs of a row in two layouts that rounding explains.
LAYOUT_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}


class Reference:
    """The frozen model that the policy is held to."""

    def __init__(self, source: WeightSource, resolved: ResolvedConfig, world: World) -> None:
        dtype = getattr(torch, resolved.settings.config.dtype)
        scorer = build_scorer(source, resolved.values, dtype, world)
        scorer.requires_grad_(False)
        self.engine, *_ = deepspeed.initialize(model=scorer, config=resolved.values)
        self.engine.eval()
        restore_buffers(scorer.model)
        self.world = world
        self.dtype = resolved.settings.config.dtype
        config = resolved.settings.config
        self.batches_per_forward = max(1, _FORWARD_TOKENS // (2 * config.batch_size * config.max_seq_len))

    @torch.no_grad()
    def score(self, batch: PairBatch) -> Tensor:
        """Log-probs of a batch's targets, (K,) float32."""
        log_probs, _ = self.engine(batch)
        return log_probs

    def score_step(self, batches: Sequence[PairBatch]) -> list[Tensor]:
        """Log-probs of all micro-batches of a global step, one (K,) float32 each, in as few forwards as memory allows.

        Under ZeRO-3 each forward gathers the whole model, so one over all micro-batches costs a gather less for each
        of the others. How many go together depends on sizes that all ranks share: they must gather equally often.
        """
        scored: list[Tensor] = []
        for start in range(0, len(batches), self.batches_per_forward):
            group = batches[start : start + self.batches_per_forward]
            packs = [batch for batch in group if isinstance(batch, PackedPairs)]
            if len(packs) == len(group) > 1:
                sizes = [len(batch.target_ids) for batch in packs]
                scored += self.score(join(packs)).split(sizes)
            else:
                scored += [self.score(batch) for batch in group]
        return scored

    def layouts_agree(self, packed: PackedPairs, padded: PaddedPairs) -> bool:
        """Whether the same pairs score the same packed as padded, on every rank.

        A model may bend attention or logits in a way that a pack does not know of; this shows it before training.
        """
        rows = []
        for batch in (packed, padded):
            moved = to_device(batch, self.world.device)
            rows.append(row_log_probs(self.score(moved), moved.target_counts, average_log_prob=True))
        difference = all_reduce((rows[0] - rows[1]).abs().max(), "max")
        return bool(difference <= LAYOUT_TOLERANCE[self.dtype])

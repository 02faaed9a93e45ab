"""The reference: what a step is told of the frozen model that the policy is held to.

    micro-batches -> row_sums -> (N, 2) float32 each, no gradient

`Reference` computes them: in eval mode, without an optimizer, always a ZeRO-3 inference shard. `CachedReference`
(reference_cache.py) looks them up.
"""

from __future__ import annotations

import abc
import gc
from collections.abc import Sequence

import deepspeed
import torch
from deepspeed.utils import set_z3_leaf_module
from torch import Tensor, nn

from minimind.data.packs import PackedPairs, PairBatch, join
from minimind.engine.build import build_scorer, transformer_blocks
from minimind.engine.ds_config import ResolvedConfig
from minimind.engine.ds_zero import swaps_to_nvme, weights_at_hand
from minimind.engine.scorer import PairScorer
from minimind.model.packed_attention import NATIVE
from minimind.objective.dpo import row_sums
from minimind.ranks.process import World
from minimind.weights.empty import restore_buffers
from minimind.weights.sources import WeightSource

# Tokens of one forward at most, counted before packing: without a gradient a forward's memory is a few layers' worth.
_FORWARD_TOKENS = 2**16


class RowReference(abc.ABC):
    """Where a step has the reference's row log-probs from."""

    @abc.abstractmethod
    def row_sums(self, batches: Sequence[PairBatch]) -> list[Tensor]:
        """Summed log-probs of the rows of a global step's micro-batches, (N, 2) float32 each: chosen, rejected."""

    @abc.abstractmethod
    def mismatch(self, worst: float, line: int) -> str:
        """What to tell a user if before the first update the policy's log-probs are not these.

        Args:
            worst: by how much, in a row's mean log-prob.
            line: of the pair.
        """


class Reference(RowReference):
    """The frozen model in an engine of its own; `attention` as the policy's."""

    def __init__(self, source: WeightSource, resolved: ResolvedConfig, world: World, attention: str = NATIVE) -> None:
        config = resolved.settings.config
        optimisation = config.optimisation
        scorer = build_scorer(source, resolved.values, getattr(torch, optimisation.dtype), world, attention)
        scorer.requires_grad_(False)
        for module in _gathered_as_one(scorer, resolved, world):
            set_z3_leaf_module(module, True)
        self.engine, *_ = deepspeed.initialize(model=scorer, config=resolved.values)
        self.engine.eval()
        restore_buffers(scorer.model)
        self.world = world
        pair = 2 * config.data.max_seq_len
        self.pairs_per_forward = max(1, _FORWARD_TOKENS // pair)
        batch = optimisation.batch_size * pair
        if optimisation.micro_batch_tokens is not None:
            batch = max(optimisation.micro_batch_tokens, pair)
        self.batches_per_forward = max(1, _FORWARD_TOKENS // batch)

    @torch.no_grad()
    def score(self, batch: PairBatch) -> Tensor:
        """Log-probs of a batch's targets, (K,) float32."""
        log_probs, _ = self.engine(batch)
        return log_probs

    def row_sums(self, batches: Sequence[PairBatch]) -> list[Tensor]:
        """As few forwards as memory allows: under ZeRO-3 each gathers the whole model.

        How many micro-batches go together depends on sizes that all ranks share: they must gather equally often.
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
        return [row_sums(part, batch.target_counts) for part, batch in zip(scored, batches, strict=True)]

    def mismatch(self, worst: float, line: int) -> str:
        return (
            f"before the first update policy and reference differ by {worst:.3g} in a row's mean log-prob (the pair at "
            f"line {line}), so the loss would not start at ln 2: they are not the same model, or its log-probs are not "
            "finite. Check the weights."
        )

    def close(self) -> None:
        """Give its memory back; nothing can be scored after it."""
        self.engine.destroy()
        del self.engine
        gc.collect()


def _gathered_as_one(scorer: PairScorer, resolved: ResolvedConfig, world: World) -> Sequence[nn.Module]:
    """The modules whose weights DeepSpeed gathers together, running its hooks once for each.

    Blocks instead of each of their matrices: larger messages. A rank that is alone has all weights where they are
    needed: there is nothing to gather piece by piece. From NVMe DeepSpeed reads a few tensors at a time.
    """
    if swaps_to_nvme(resolved.values):
        return []
    if world.size == 1 and weights_at_hand(resolved.values):
        return [scorer]
    return transformer_blocks(scorer.model)

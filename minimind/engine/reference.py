"""The reference: the model that the policy is compared with.

    micro-batches of a global step -> score -> ReferenceScores of each, without gradient

`LiveReference` computes the scores with a ZeRO-3 inference shard, in eval mode and without an optimizer. A policy with
adapters contains its reference (adapted_reference.py). `CachedReference` (reference_cache.py) reads scores from disk. A
loss that needs no reference builds none.
"""

from __future__ import annotations

import abc
import gc
from collections.abc import Callable, Sequence

import deepspeed
import torch
from deepspeed.utils import set_z3_leaf_module
from torch import Tensor, nn

from minimind.config import JobConfig
from minimind.data.packs import Batch, PackedPairs, PairBatch, join
from minimind.engine.build import build_scorer, transformer_blocks
from minimind.engine.ds_config import ResolvedConfig
from minimind.engine.ds_zero import swaps_to_nvme, weights_at_hand
from minimind.engine.patches.registry import select_patches
from minimind.engine.scorer import PairScorer
from minimind.model.packed_attention import NATIVE
from minimind.objective.rows import ReferenceScores, row_sums
from minimind.ranks.world import World
from minimind.weights.construction import restore_computed_buffers
from minimind.weights.sources import WeightSource

# Upper limit of tokens in one forward, counted before packing. Without a gradient a forward holds the activations of a
# few layers only, so it can take several micro-batches of the policy.
_FORWARD_TOKENS = 2**16


class Reference(abc.ABC):
    """Source of the reference's log-probs."""

    @abc.abstractmethod
    def score(self, batches: Sequence[PairBatch], per_token: bool = False) -> list[ReferenceScores]:
        """Scores of a global step's micro-batches; `per_token` asks for the log-prob of each target too."""

    @abc.abstractmethod
    def mismatch(self, worst: float, index: int, place: str, start_value: float | None) -> str:
        """Error message for a policy whose log-probs differ from these before the first update.

        Args:
            worst: largest difference, in a row's mean log-prob.
            index: `PreferencePair.index` of that pair.
            place: where it is from.
            start_value: value of the loss while policy and reference are the same model.
        """


class ModelReference(Reference):
    """A model that computes the log-probs.

    Args:
        config: the run's settings.

    Attributes:
        pairs_per_forward, batches_per_forward: how many pairs, or micro-batches of the policy, one forward takes.
    """

    def __init__(self, config: JobConfig) -> None:
        optimisation = config.optimisation
        pair = 2 * config.data.max_seq_len
        self.pairs_per_forward = max(1, _FORWARD_TOKENS // pair)
        batch = optimisation.batch_size * pair
        if optimisation.micro_batch_tokens is not None:
            batch = max(optimisation.micro_batch_tokens, pair)
        self.batches_per_forward = max(1, _FORWARD_TOKENS // batch)

    @abc.abstractmethod
    def log_probs(self, batch: PairBatch) -> Tensor:
        """Log-probs of a batch's targets, (K,) float32, without gradient and in eval mode."""

    def score(self, batches: Sequence[PairBatch], per_token: bool = False) -> list[ReferenceScores]:
        """Scores of a global step's micro-batches, in as few forwards as memory allows.

        Under ZeRO-3 each forward gathers the whole model. The number of micro-batches in one forward is computed from
        settings that all ranks share, because all ranks must gather equally often.
        """
        scored: list[Tensor] = []
        for start in range(0, len(batches), self.batches_per_forward):
            group = batches[start : start + self.batches_per_forward]
            packs = [batch for batch in group if isinstance(batch, PackedPairs)]
            if len(packs) == len(group) > 1:
                sizes = [len(batch.target_ids) for batch in packs]
                scored += self.log_probs(join(packs)).split(sizes)
            else:
                scored += [self.log_probs(batch) for batch in group]
        return [
            ReferenceScores(sums=row_sums(part, batch.target_counts), per_token=part if per_token else None)
            for part, batch in zip(scored, batches, strict=True)
        ]

    def mismatch(self, worst: float, index: int, place: str, start_value: float | None) -> str:
        start = "" if start_value is None else f", and the loss would not start at {start_value:.4f}"
        return (
            f"before the first update policy and reference differ by {worst:.3g} in a row's mean log-prob "
            f"({place}){start}. They are not the same model, or its log-probs are not finite. Check the weights."
        )

    def close(self) -> None:
        """Free memory that only the reference needs. It cannot score after this."""


class LiveReference(ModelReference):
    """The frozen model in a DeepSpeed engine of its own.

    Args:
        source: its weights.
        resolved: the reference's DeepSpeed configuration.
        world: the ranks.
        attention: attention backend, a name of `packed_attention.BACKENDS`; the same as the policy's.
        on_progress: called after each tensor while weights are read.
    """

    def __init__(
        self,
        source: WeightSource,
        resolved: ResolvedConfig,
        world: World,
        attention: str = NATIVE,
        on_progress: Callable[[], object] = lambda: None,
    ) -> None:
        config = resolved.settings.config
        super().__init__(config)
        dtype = getattr(torch, config.optimisation.dtype)
        patches = select_patches(config.engine.disable_patches, speaks=world.is_main)
        scorer = build_scorer(source, resolved.values, dtype, world, attention, patches, on_progress)
        scorer.requires_grad_(False)
        # Before `initialize`, which puts the hooks that gather on these modules.
        for module in _gather_units(scorer, resolved, world):
            set_z3_leaf_module(module, True)
        self.engine, *_ = deepspeed.initialize(model=scorer, config=resolved.values)
        self.engine.eval()
        restore_computed_buffers(scorer.model)
        self.world = world
        self.dtype = config.optimisation.dtype

    @torch.no_grad()
    def probe(self, batch: Batch, training: bool = False) -> Tensor:
        """Log-probs of a batch's targets, (K,) float32, of a model that may fail; the engine is usable afterwards."""
        assert not training, "the reference computes in eval mode"
        try:
            return self.engine(batch.to_device(self.world.device))[0]
        except Exception:
            # The hooks that release a module's weights have not run for the modules that failed.
            self.engine.empty_partition_cache()
            raise

    @torch.no_grad()
    def log_probs(self, batch: PairBatch) -> Tensor:
        log_probs, _ = self.engine(batch)
        return log_probs

    def release_gathered(self) -> None:
        """Drop gathered weights, after the shard has changed; small ones otherwise stay gathered between forwards."""
        self.engine.optimizer.empty_partition_cache()

    def close(self) -> None:
        self.engine.destroy()
        del self.engine
        # Modules and DeepSpeed's hooks refer to each other, so the weights stay until a collection.
        gc.collect()


def _gather_units(scorer: PairScorer, resolved: ResolvedConfig, world: World) -> Sequence[nn.Module]:
    """Modules whose weights DeepSpeed gathers with one message each, instead of one for each matrix.

    Usually the transformer blocks: larger messages, and the hooks run once per block. A rank without peers holds all
    weights, so the whole model is one unit. From NVMe DeepSpeed can read only a few tensors at a time: no units.
    """
    if swaps_to_nvme(resolved.values):
        return []
    if world.size == 1 and weights_at_hand(resolved.values):
        return [scorer]
    return transformer_blocks(scorer.model)

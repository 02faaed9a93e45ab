"""Models for engines: made empty, whole or as ZeRO-3 shards, and filled from a weight source tensor by tensor.

Under ZeRO-3 no rank ever holds a whole model: parameters are partitioned as they are made, and each rank then copies
its own share of each tensor out of the weight file, which is mapped into memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minimind.engine.ds_zero import swaps_to_nvme
from minimind.engine.scorer import PairScorer
from minimind.model.packed_attention import NATIVE
from minimind.ranks.world import World
from minimind.weights.construction import model_from_tensors, uninitialized_model
from minimind.weights.sources import WeightSource, tensors


def build_scorer(
    source: WeightSource,
    ds_config: dict[str, Any],
    dtype: torch.dtype,
    world: World,
    attention: str = NATIVE,
    on_progress: Callable[[], object] = lambda: None,
) -> PairScorer:
    """A scorer with the source's weights, in the run's dtype; partitioned where the DeepSpeed file says stage 3.

    `on_progress` is called after each tensor or module that is filled.
    """
    zero = ds_config["zero_optimization"]
    if zero["stage"] < 3:
        # A copy of its own for each tensor: what a file maps or another model shares must not be trained.
        state = {name: tensor.to(dtype, copy=True) for name, tensor in tensors(source)}
        return PairScorer(model_from_tensors(source.config, state), attention)
    with deepspeed.zero.Init(config_dict_or_path=ds_config):
        model = uninitialized_model(source.config, dtype)
    # ZeRO++ keeps a second share of each tensor, or rounded ones; on NVMe none is at hand.
    second = zero.get("zero_hpz_partition_size", 1) > 1
    rounded = any(zero.get(f"zero_quantized_{which}weights", False) for which in ("", "nontrainable_"))
    if second or rounded or swaps_to_nvme(ds_config):
        _fill_gathered(model, source, world, on_progress)
    else:
        _fill_shards(model, source, world, on_progress)
    for name, buffer in model.named_buffers():
        if name in source.shapes():
            buffer.copy_(source.read(name))
    scorer = PairScorer(model, attention)
    # The scorer multiplies by the head's weight itself. What DeepSpeed learns only from an access within a forward it
    # gathers there and then, by a collective of its own. On a CPU that one's copy gives gloo's thread a pool of OpenMP
    # threads, for good; with more of those in a process than processors they sleep between any two operations.
    for weight in model.get_output_embeddings().parameters():
        deepspeed.zero.register_external_parameter(scorer, weight)
    return scorer


def transformer_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The blocks of a model in its order, as transformers marks them; none where it does not say what they are."""
    return [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]


def own_share(tensor: Tensor, world: World) -> Tensor:
    """The elements of a tensor that ZeRO-3 leaves to this rank, (elements,), not copied: equal shares of the flattened
    tensor, where the last ranks' are short, which DeepSpeed pads. Of a mapped tensor only they are read."""
    size = -(-tensor.numel() // world.size)
    return tensor.flatten()[size * world.rank : size * (world.rank + 1)]


@torch.no_grad()
def _fill_shards(model: nn.Module, source: WeightSource, world: World, on_progress: Callable[[], object]) -> None:
    """Every rank copies its share of each tensor; nothing is gathered or sent."""
    for name, parameter in model.named_parameters():
        shard: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
        share = own_share(source.read(name), world)
        shard.narrow(0, 0, share.numel()).copy_(share)
        on_progress()


@torch.no_grad()
def _fill_gathered(
    model: nn.Module, source: WeightSource, world: World, on_progress: Callable[[], object] = lambda: None
) -> None:
    """Module by module: gathered, filled by rank 0, and cut again by DeepSpeed, which knows where the parts belong."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    filled: set[nn.Parameter] = set()
    for module in model.modules():
        own = [p for p in module.parameters(recurse=False) if p not in filled]
        if not own:
            continue
        with deepspeed.zero.GatheredParameters(own, modifier_rank=0):
            if world.is_main:
                for parameter in own:
                    parameter.copy_(source.read(names[parameter]))
        filled.update(own)
        on_progress()

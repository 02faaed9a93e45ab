"""Builds models for engines, and fills them from a weight source tensor by tensor.

    weight source -> plain model with copies of all tensors                      ZeRO stages 0 to 2
                  -> empty model in ZeRO-3 shards -> each rank fills its own     ZeRO stage 3

Under ZeRO-3 no rank ever holds a whole model: DeepSpeed partitions each parameter as it is made, and each rank then
copies its own part of each tensor out of the weight file, which is mapped into memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from deepspeed.utils import set_z3_leaf_module
from torch import Tensor, nn
from transformers import PreTrainedModel

from minimind.engine.ds_zero import has_plain_shards
from minimind.engine.patches.partitions import FILL_OWN_SHARDS, shard_of
from minimind.engine.patches.registry import PatchSelection
from minimind.engine.scorer import PairScorer
from minimind.errors import ConfigError
from minimind.model.adapters import adapter_of, add_adapters, trained_name
from minimind.model.packed_attention import NATIVE
from minimind.model.quantized_layers import use_packed_weights
from minimind.model.text_half import freeze_other_parts
from minimind.ranks.world import World
from minimind.weights.adapters import AdapterSource
from minimind.weights.construction import model_from_tensors, uninitialized_model
from minimind.weights.sources import WeightSource, tensors


def build_scorer(
    source: WeightSource,
    ds_config: dict[str, Any],
    dtype: torch.dtype,
    world: World,
    attention: str = NATIVE,
    patches: PatchSelection | None = None,
    on_progress: Callable[[], object] = lambda: None,
    router_aux_loss_coef: float | None = None,
) -> PairScorer:
    """A scorer with the source's weights; partitioned if the DeepSpeed file says stage 3. All ranks must call.

    Args:
        source: the weights.
        ds_config: a resolved DeepSpeed configuration.
        dtype: of the model's parameters.
        world: the ranks.
        attention: attention backend for packs, a name of `packed_attention.BACKENDS`.
        patches: which patches the run uses; None: all.
        on_progress: called after each tensor or module that is filled.
        router_aux_loss_coef: see `PairScorer`.
    """
    if ds_config["zero_optimization"]["stage"] < 3:
        # Each tensor is copied: a tensor that is mapped from a file or shared with another model must not be trained.
        state = {name: _copied(tensor, dtype) for name, tensor in tensors(source)}
        model = model_from_tensors(source.config, state, source.packed_layers)
        return PairScorer(model, attention, router_aux_loss_coef)
    with deepspeed.zero.Init(config_dict_or_path=ds_config):
        model = uninitialized_model(source.config, dtype)
        # Within `Init` too, which partitions only what is made in it.
        use_packed_weights(model, source.packed_layers)
    if _has_plain_shards(ds_config, model, patches or PatchSelection()):
        _fill_shards(model, source, world, on_progress)
    else:
        _fill_gathered(model, source, world, on_progress)
    # ZeRO-3 does not partition buffers. Those that the source lacks are computed by the model, e.g. rotary angles.
    for name, buffer in model.named_buffers():
        if name in source.shapes():
            buffer.copy_(source.read(name))
    scorer = PairScorer(model, attention, router_aux_loss_coef)
    # The scorer multiplies by the head's weight itself, outside the head's forward. Without registration DeepSpeed
    # gathers such a weight on access, through a blocking collective whose copy gives gloo's thread an OpenMP pool of
    # its own. With more OpenMP threads than processors every operation waits for the scheduler.
    for weight in model.get_output_embeddings().parameters():
        deepspeed.zero.register_external_parameter(scorer, weight)
    return scorer


def _copied(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in the dtype; the bytes of a packed weight stay bytes."""
    return tensor.clone() if tensor.dtype == torch.uint8 else tensor.to(dtype, copy=True)


def choose_trained(
    model: PreTrainedModel, stage: int, adapters: AdapterSource | None, keep_start: bool
) -> dict[str, int]:
    """Freeze what does not train: parts that a text does not reach, and under adapters all weights.

    Returns: see `freeze_other_parts`.
    """
    frozen = freeze_other_parts(model)
    if adapters is not None:
        fill_adapters(model, adapters, keep_start)
        _keep_aliases_out_of_checkpoints(model)
        if stage == 3:
            gather_blocks_whole(model)
    return frozen


def _keep_aliases_out_of_checkpoints(model: PreTrainedModel) -> None:
    """Drop the second names of frozen tensors from state dicts: DeepSpeed drops the first ones, but not a tied head."""
    first = {name for name, _ in model.named_parameters()}
    both = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}

    def drop(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        for name in both - first:
            state.pop(prefix + name, None)

    model.register_state_dict_post_hook(drop)


@torch.no_grad()
def fill_adapters(model: PreTrainedModel, adapters: AdapterSource, keep_start: bool = False) -> None:
    """Add adapters with their start values to a model; they train, and everything else is frozen.

    Under ZeRO-3 the adapters are whole tensors on every rank until DeepSpeed partitions them with its engine.

    Args:
        keep_start: add the start values a second time, frozen, for the reference.
    """
    add_adapters(model, adapters.spec, keep_start)
    # peft gives an adapter the dtype of its layer's weight, but float32 if that is packed.
    dtype = model.get_input_embeddings().weight.dtype
    for name, parameter in model.named_parameters():
        if adapter_of(name) is not None:
            parameter.data = adapters.read(trained_name(name)).to(parameter.device, dtype, copy=True)


def gather_blocks_whole(model: PreTrainedModel) -> None:
    """Let ZeRO-3 gather each block of a model with adapters as one unit, for its engine's training.

    A block has the same parameters whether its adapters are on or off, so the order of what is gathered never changes.
    DoRA and stacked experts also read weights outside of the layer that owns them.

    Raises:
        ConfigError: the model's class does not name its blocks.
    """
    blocks = transformer_blocks(model)
    if not blocks:
        name = type(model).__name__
        raise ConfigError(f"adapters at ZeRO stage 3: {name} does not name its blocks (_no_split_modules); use stage 2")
    for block in blocks:
        set_z3_leaf_module(block, True)

    def require_gradient(module: nn.Module, inputs: Any, output: Tensor) -> None:
        # DeepSpeed reduces a unit's gradients when the gradient of its input is there; without such a gradient, as in
        # the first block over frozen embeddings, too early.
        if torch.is_grad_enabled():
            output.requires_grad_(True)

    model.get_input_embeddings().register_forward_hook(require_gradient)


def transformer_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The transformer blocks of a model in order; empty if its class does not declare their type."""
    # transformers declares the class names of blocks for device placement.
    return [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]


def own_share(tensor: Tensor, world: World) -> Tensor:
    """A view of the elements that ZeRO-3 assigns to this rank, at most (ceil(numel / ranks),).

    The flattened tensor is cut into equal parts. The last ranks' parts may be shorter or empty; DeepSpeed pads them. Of
    a mapped tensor only these elements are read from the disk.
    """
    start, stop = own_range(tensor.numel(), world)
    return tensor.flatten()[start:stop]


def own_range(numel: int, world: World) -> tuple[int, int]:
    """First element of a tensor that ZeRO-3 assigns to this rank, and the one after the last."""
    size = -(-numel // world.size)
    return min(size * world.rank, numel), min(size * (world.rank + 1), numel)


def _has_plain_shards(ds_config: dict[str, Any], model: nn.Module, patches: PatchSelection) -> bool:
    """Whether this rank can write its part of each parameter directly."""
    if not has_plain_shards(ds_config):
        return False
    return patches.uses(FILL_OWN_SHARDS, next(model.parameters()))


@torch.no_grad()
def _fill_shards(model: nn.Module, source: WeightSource, world: World, on_progress: Callable[[], object]) -> None:
    """Every rank copies its own part of each tensor; nothing is communicated."""
    for name, parameter in model.named_parameters():
        # `source.read` maps the file; only the pages of this share are read from disk.
        share = own_share(source.read(name), world)
        shard_of(parameter).narrow(0, 0, share.numel()).copy_(share)
        on_progress()


@torch.no_grad()
def _fill_gathered(model: nn.Module, source: WeightSource, world: World, on_progress: Callable[[], object]) -> None:
    """Gather the parameters of one module at a time, fill them on rank 0, and let DeepSpeed partition them again."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    filled: set[nn.Parameter] = set()  # tied parameters belong to two modules
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

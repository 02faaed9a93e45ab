"""Models for engines: made empty, whole or as ZeRO-3 shards, and filled from a weight source tensor by tensor.

Under ZeRO-3 no rank ever holds a whole model: parameters are partitioned as they are made, and each module is gathered
alone to be filled from rank 0.
"""

from __future__ import annotations

import contextlib
from typing import Any

import deepspeed
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from minimind.engine.process import World
from minimind.engine.scorer import PairScorer
from minimind.weights.io import fill
from minimind.weights.sources import WeightSource, parameter_shapes


def build_scorer(source: WeightSource, ds_config: dict[str, Any], dtype: torch.dtype, world: World) -> PairScorer:
    """A scorer with the source's weights, in the run's dtype; partitioned where the DeepSpeed file says stage 3.

    Raises:
        WeightsError: tensors that do not fit the model, all of them listed.
    """
    with torch.device("meta"):
        source.check_fit(parameter_shapes(_empty(source.config, dtype)))
    sharded = ds_config["zero_optimization"]["stage"] == 3
    with deepspeed.zero.Init(config_dict_or_path=ds_config) if sharded else contextlib.nullcontext():
        model = _empty(source.config, dtype)
    if sharded:
        _fill_shards(model, source, world)
    else:
        fill(model, source)
    return PairScorer(model)


def _empty(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model whose weights are whatever memory held: every one of them is about to be filled."""
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    return model


@torch.no_grad()
def _fill_shards(model: nn.Module, source: WeightSource, world: World) -> None:
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
    for name, buffer in model.named_buffers():
        if name in source.shapes():
            buffer.copy_(source.read(name))

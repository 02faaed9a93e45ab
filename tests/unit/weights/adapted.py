"""Small models with adapters that have trained."""

from __future__ import annotations

import torch

from minimind.model.adapters import AdapterSpec, adapter_of, add_adapters, find_targets
from minimind.model.configuration import MiniMindConfig
from minimind.weights.adapters import FreshAdapter
from minimind.weights.construction import empty_model, model_from_tensors
from minimind.weights.sources import RandomSource

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
TOKENS = torch.arange(12)[None] % 60


def dense() -> RandomSource:
    return RandomSource(MiniMindConfig(generation=3, **SIZES), seed=5)


def mixture() -> RandomSource:
    return RandomSource(MiniMindConfig(generation=2, use_moe=True, **SIZES), seed=5)


def spec_of(base, targets="all-linear", **fields) -> AdapterSpec:
    layers, stacks = find_targets(empty_model(base.config), targets)
    return AdapterSpec(**{"rank": 4, "alpha": 8.0, **fields}, layers=layers, stacks=stacks)


def plain(base):
    return model_from_tensors(base.config, {name: base.read(name).clone() for name in base.shapes()})


def trained(base, spec, seed=1):
    """A model whose adapters have trained, and their parameters."""
    torch.manual_seed(seed)
    start = FreshAdapter(spec, base, seed, torch.float32, "default")
    model = plain(base)
    add_adapters(model, spec)
    state = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if adapter_of(name):
                parameter.copy_(start.read(name)).add_(torch.randn_like(parameter), alpha=0.05)
                state[name] = parameter.detach().clone()
    return model, state

"""How the router spreads tokens over a mixture's experts: counted on the device, reduced over ranks in a logged step.

    forward of a layer in training -> tokens of each expert, added up -> (logged step) reduce
        -> experts/dead, experts/busiest, experts/tokens

MiniMind's experts are told where the tokens of each end. Most of transformers' routers return the chosen experts;
mixtures with others (DeepSeek-V3) are not counted. Counting is one or two small operations a layer and micro-batch. A
forward that gradient checkpointing repeats counts twice, all experts alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minimind.diagnosis.rules.weights import DEAD, EXPECTED
from minimind.model.moe import Experts
from minimind.ranks.collectives import all_reduce
from minimind.ranks.world import World

BUSIEST = "experts/busiest"


class ExpertLoad:
    """Counts the tokens of each expert of each layer.

    Args:
        layers: MiniMind's experts of each layer, or transformers' router of each layer -> E, its number of experts.
        world: the ranks.
    """

    def __init__(self, layers: Mapping[nn.Module, int], world: World) -> None:
        # Of MiniMind's experts sums of the index after each one's last token: differences are taken when they are read.
        self._rows = [torch.zeros(number, dtype=torch.int64, device=world.device) for number in layers.values()]
        self._are_ends = [isinstance(layer, Experts) for layer in layers]
        for layer, row in zip(layers, self._rows, strict=True):
            if isinstance(layer, Experts):
                layer.register_forward_pre_hook(_AddEnds(row))
            else:
                layer.register_forward_hook(_AddChosen(row))

    @classmethod
    def of(cls, model: PreTrainedModel, world: World) -> ExpertLoad | None:
        """Of a model; None if it has no experts that can be counted."""
        layers: dict[nn.Module, int] = {}
        for module in model.modules():
            is_router = isinstance(module, Experts) or type(module).__name__.endswith("Router")
            # MiniMind's experts have no number of their own: under ZeRO-3 their tensors are empty.
            owner: Any = model.config if isinstance(module, Experts) else module
            if is_router and isinstance(number := getattr(owner, "num_experts", None), int):
                layers[module] = number
        return cls(layers, world) if layers else None

    def reduce(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Metrics of the steps since the last call; all ranks must call.

        experts/dead: share of all layers' experts that got no token.
        experts/busiest: tokens of the busiest expert over those that an expert gets on average, of the layer where that
            is largest; 1 is an even load.
        experts/tokens: that average, over all layers.
        """
        counts = [row.diff(prepend=row.new_zeros(1)) if ends else row
                  for row, ends in zip(self._rows, self._are_ends, strict=True)]  # fmt: skip
        layers = all_reduce(torch.cat(counts)).double().split([len(row) for row in self._rows])
        for row in self._rows:
            row.zero_()
        experts = sum(map(len, layers))
        dead = torch.stack([(layer == 0).sum() for layer in layers]).sum()
        busiest = torch.stack([layer.max() / layer.mean().clamp_min(1e-9) for layer in layers]).max()
        tokens = torch.stack([layer.sum() for layer in layers]).sum()
        of_all, most, dead_ones = torch.stack((tokens, busiest, dead.double())).tolist()
        if not of_all:
            return {}
        return {DEAD: dead_ones / experts, BUSIEST: most, EXPECTED: of_all / experts}


class _AddEnds:
    """Adds the second argument of `Experts.forward` to a row, in training."""

    def __init__(self, row: Tensor) -> None:
        self._row = row

    def __call__(self, experts: nn.Module, arguments: tuple[Any, ...]) -> None:
        if experts.training:
            self._row.add_(arguments[1])


class _AddChosen:
    """Adds to a row how often each expert is chosen, if a router returns logits, weights and chosen experts (T, k)."""

    def __init__(self, row: Tensor) -> None:
        self._row = row

    def __call__(self, router: nn.Module, arguments: tuple[Any, ...], out: Any) -> None:
        if not (router.training and isinstance(out, tuple) and len(out) == 3):
            return
        chosen = out[2]
        if isinstance(chosen, Tensor) and chosen.dtype == torch.int64 and chosen.dim() == 2:
            chosen = chosen.flatten()
            # bincount would wait for the device.
            self._row.scatter_add_(0, chosen, torch.ones_like(chosen))

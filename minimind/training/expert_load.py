"""How the router spreads tokens over a mixture's experts: counted on the device, reduced over ranks in a logged step.

    forward of a layer in training -> tokens of each expert, added up -> (logged step) reduce
        -> experts/dead, experts/busiest, experts/tokens

The experts of a layer are told what the router chose, whatever kind of router it is: MiniMind's where the tokens of
each end, transformers' the experts of each token. Counting is one or two small operations a layer and micro-batch. A
forward that gradient checkpointing repeats counts twice, all experts alike.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
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
# Arguments of the forward of transformers' experts that have the chosen experts of each token, (T, k) integers.
_CHOSEN = ("top_k_index", "router_indices", "selected_experts")
# Attributes with the number of experts. In LongCat chosen experts above it are no networks.
_NUMBERS = ("num_experts", "num_routed_experts")
# Class names of mixtures and of their experts; shared experts get every token.
_MIXTURE = re.compile(r"(?!\w*Shared)\w*(Experts|Mo[eE]|MoA)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountedExperts:
    """Where the experts of a layer are told what the router chose.

    Attributes:
        number: E, of the experts.
        argument: place and name of the one of their forward with the chosen experts of each token; None: they are
            MiniMind's, which are told where the tokens of each expert end.
    """

    number: int
    argument: tuple[int, str] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertLayers:
    """The mixtures of a model.

    Attributes:
        counted: experts of a layer -> how they are counted.
        others: class names of mixtures whose experts are not told which tokens chose them.
    """

    counted: Mapping[nn.Module, CountedExperts]
    others: tuple[str, ...]

    @classmethod
    def of(cls, model: PreTrainedModel) -> ExpertLayers:
        """Those of a model; a dense one has none."""
        counted = {one: found for one in model.modules() if (found := _counted(one, model)) is not None}
        others: dict[str, None] = {}
        named: set[nn.Module] = set()  # with what is within them
        for one in model.modules():
            is_mixture = one not in named and _MIXTURE.fullmatch(type(one).__name__)
            if is_mixture and counted.keys().isdisjoint(one.modules()):
                others[type(one).__name__] = None
                named |= set(one.modules())
        return cls(counted=counted, others=tuple(others))


def _counted(module: nn.Module, model: PreTrainedModel) -> CountedExperts | None:
    """Experts whose load can be counted; None for any other module."""
    if isinstance(module, Experts):
        # They have no number of their own: under ZeRO-3 their tensors are empty.
        return CountedExperts(number=int(model.config.num_experts), argument=None)
    if not type(module).__name__.endswith("Experts"):
        return None
    names = inspect.signature(module.forward).parameters
    argument = next(((place, name) for place, name in enumerate(names) if name in _CHOSEN), None)
    numbers = (getattr(module, name, None) for name in _NUMBERS)
    number = next((number for number in numbers if isinstance(number, int)), None)
    return None if argument is None or number is None else CountedExperts(number=number, argument=argument)


class ExpertLoad:
    """Counts the tokens of each expert of each layer.

    Args:
        layers: experts of each layer -> how they are counted.
        world: the ranks.
    """

    def __init__(self, layers: Mapping[nn.Module, CountedExperts], world: World) -> None:
        self._numbers = [layer.number for layer in layers.values()]
        self._are_ends = [layer.argument is None for layer in layers.values()]
        # Of MiniMind's experts sums of the index after each one's last token: differences are taken when they are read.
        # Of the others one number more, of what is chosen and is no expert.
        self._rows = [
            torch.zeros(number + (not ends), dtype=torch.int64, device=world.device)
            for number, ends in zip(self._numbers, self._are_ends, strict=True)
        ]
        for (layer, counted), row in zip(layers.items(), self._rows, strict=True):
            if counted.argument is None:
                layer.register_forward_pre_hook(_AddEnds(row))
            else:
                layer.register_forward_pre_hook(_AddChosen(row, *counted.argument), with_kwargs=True)

    def reduce(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Metrics of the steps since the last call; all ranks must call.

        A layer that no token has reached, as of a part for images, does not count.

        experts/dead: share of all layers' experts that got no token.
        experts/busiest: tokens of the busiest expert over those that an expert gets on average, of the layer where that
            is largest; 1 is an even load.
        experts/tokens: that average, over all layers.
        """
        counts = [row.diff(prepend=row.new_zeros(1)) if ends else row[:number]
                  for row, number, ends in zip(self._rows, self._numbers, self._are_ends, strict=True)]  # fmt: skip
        layers = all_reduce(torch.cat(counts)).double().split(self._numbers)
        for row in self._rows:
            row.zero_()
        tokens = torch.stack([layer.sum() for layer in layers])
        reached = tokens > 0
        numbers = torch.tensor(self._numbers, dtype=torch.float64).to(tokens.device) * reached
        dead = torch.stack([(layer == 0).sum() for layer in layers]) * reached
        busiest = torch.stack([layer.max() / layer.mean().clamp_min(1e-9) for layer in layers]).max()
        sums = torch.stack((numbers.sum(), tokens.sum(), dead.sum().double(), busiest))
        experts, of_all, dead_ones, most = sums.tolist()
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
    """Adds to a row how often each expert is chosen, in training.

    Args:
        row: (E + 1,) int64.
        place, name: of the argument with the chosen experts.
    """

    def __init__(self, row: Tensor, place: int, name: str) -> None:
        self._row, self._place, self._name = row, place, name

    def __call__(self, experts: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        if experts.training:
            chosen = named[self._name] if self._name in named else arguments[self._place]
            chosen = chosen.flatten().long().clamp_max(len(self._row) - 1)
            # bincount would wait for the device.
            self._row.scatter_add_(0, chosen, torch.ones_like(chosen))

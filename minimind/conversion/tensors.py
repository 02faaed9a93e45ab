"""Tensors of models that equal MiniMind's, under MiniMind's names, and the names that files have.

    source of a Qwen3, Qwen3-MoE or Llama model -> as_minimind -> source of the MiniMind model that it equals
    MiniMind model -> stored_tensors -> the tensors of a file: name, shape, and what they are of the model's

All of these architectures have the same names in files. Only experts differ within a model: transformers' Qwen3-MoE
stacks gate and up of all experts in one tensor, (E, 2 inner, H); MiniMind's here are two, (E, inner, H) each.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re

from torch import Tensor

from minimind.conversion.architectures import minimind_config
from minimind.model.configuration import MiniMindConfig
from minimind.weights.sources import WeightSource

_GATE_UP = re.compile(r"^(?P<experts>.*\.mlp\.experts)\.gate_up_proj$")
_STACK = re.compile(r"^(?P<experts>.*\.mlp\.experts)\.(?P<part>gate_proj|up_proj|down_proj)$")


class _MiniMindView(WeightSource):
    """The tensors of another architecture under the names of the MiniMind model that it equals."""

    def __init__(self, source: WeightSource, config: MiniMindConfig) -> None:
        self.config, self.origin, self.tokenizer_path = config, source.origin, source.tokenizer_path
        self._source = source
        # Our name -> name there, and the half of its second dimension; None: all of it.
        self._parts: dict[str, tuple[str, int | None]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in source.shapes().items():
            match = _GATE_UP.match(name)
            if match is None:
                self._parts[name], self._shapes[name] = (name, None), shape
                continue
            experts, both, hidden = shape
            for half, part in enumerate(("gate_proj", "up_proj")):
                ours = f"{match['experts']}.{part}"
                self._parts[ours], self._shapes[ours] = (name, half), (experts, both // 2, hidden)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._shapes

    def read(self, name: str) -> Tensor:
        theirs, half = self._parts[name]
        tensor = self._source.read(theirs)
        return tensor if half is None else tensor.chunk(2, dim=1)[half]


def as_minimind(source: WeightSource, *, yarn: bool = False) -> WeightSource:
    """The same tensors under MiniMind's names, with a MiniMind configuration.

    Args:
        yarn: turn MiniMind's YaRN scaling on, whatever the configuration says.

    Raises:
        WeightsError: the model has no equal in MiniMind, or its tensors do not fit its configuration.
    """
    if isinstance(source.config, MiniMindConfig):
        found = copy.copy(source)
    else:
        found = _MiniMindView(source, minimind_config(source.config))
    if yarn and not found.config.inference_rope_scaling:
        fields = {name: value for name, value in found.config.to_dict().items() if name != "yarn"}
        found.config = MiniMindConfig(**{**fields, "inference_rope_scaling": True})
    found.check_fit()
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """One tensor of a file.

    Attributes:
        shape: its shape.
        source: the model's tensor that it is, or is a part of.
        expert: index into the first dimension of the model's tensor; None: it is all of it.
    """

    shape: tuple[int, ...]
    source: str
    expert: int | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def stored_tensors(source: WeightSource, *, stacked: bool) -> dict[str, Stored]:
    """The tensors of a file by name: those of the model, with one for each expert unless they stay stacked.

    Args:
        source: a source with MiniMind's names.
    """
    found = {}
    for name, shape in source.shapes().items():
        match = None if stacked else _STACK.match(name)
        if match is None:
            found[name] = Stored(shape=shape, source=name)
            continue
        for index in range(shape[0]):
            stored = Stored(shape=shape[1:], source=name, expert=index)
            found[f"{match['experts']}.{index}.{match['part']}.weight"] = stored
    return found

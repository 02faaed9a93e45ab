"""A base in 4 bits: the linear layers of a weight source, packed as they are read.

weight source, dtype -> QuantizedSource -> the same names; the weights of its layers are bytes (quantized_layers.py)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from minimind.model.adapters import ALL_LINEAR, find_targets
from minimind.model.quantized_layers import pack, packed_bytes
from minimind.model.text_half import freeze_other_parts
from minimind.weights.construction import empty_model
from minimind.weights.sources import WeightSource


class QuantizedSource(WeightSource):
    """The tensors of a base whose linear layers, all but the head, are packed. Stacked experts are not.

    Args:
        base: the weights.
        dtype: of the weights in training; they are rounded to it before they are packed, as bitsandbytes does.
    """

    def __init__(self, base: WeightSource, dtype: torch.dtype) -> None:
        self.config, self.origin, self.tokenizer_path = base.config, base.origin, base.tokenizer_path
        self._base, self._dtype = base, dtype
        model = empty_model(base.config)
        self.packed_layers = _packed_layers(model)
        # GPT-2's layers keep their weight as (in, out); packed layers do not.
        self._transposed = {f"{n}.weight" for n in self.packed_layers if isinstance(model.get_submodule(n), Conv1D)}
        self._packed = {f"{name}.weight" for name in self.packed_layers}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {
            name: (packed_bytes(torch.Size(shape).numel()),) if name in self._packed else shape
            for name, shape in self._base.shapes().items()
        }

    def read(self, name: str) -> Tensor:
        tensor = self._base.read(name)
        if name not in self._packed:
            return tensor
        tensor = tensor.to(self._dtype)
        return pack(tensor.t() if name in self._transposed else tensor)


def packed_weights(config: PretrainedConfig) -> set[str]:
    """Names of the tensors that are packed of a base with this configuration."""
    return {f"{name}.weight" for name in _packed_layers(empty_model(config))}


def _packed_layers(model: PreTrainedModel) -> tuple[str, ...]:
    freeze_other_parts(model)
    return find_targets(model, ALL_LINEAR)[0]

"""How many weights differ from those that training started from, once both are stored in a dtype.

float32 weights, start weights -> even sample of each tensor -> both rounded to each dtype -> share that still differs

At a learning rate of 4e-8 an update is far below the spacing of 16-bit numbers around a weight. conversion/rounding.py
compares all weights while it exports them; a run compares a sample, at each save, on one rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from minimind.weights.sources import WeightSource

# Weights of a tensor that are compared, and in how many runs of consecutive ones: a file is read in pages.
_SAMPLE, _PIECES = 2**16, 64


@torch.no_grad()
def shares_moved(state: Mapping[str, Tensor], start: WeightSource, dtypes: Iterable[str]) -> dict[str, float]:
    """Share of the weights that differ, by dtype. Exact for tensors of up to 65,536 elements, else of a sample of them.

    Args:
        state: the trained weights, float32 on the CPU, under the model's own names.
        start: the start weights, with the same names.
        dtypes: names of torch's dtypes.
    """
    differing = dict.fromkeys(dtypes, 0.0)
    total = 0
    for name, tensor in state.items():
        now, before = _sample(tensor), _sample(start.read(name))
        total += tensor.numel()
        weight = tensor.numel() / max(1, now.numel())  # of each sampled element
        for dtype in differing:
            kind = getattr(torch, dtype)
            differing[dtype] += weight * float((now.to(kind) != before.to(kind)).count_nonzero())
    return {dtype: number / total for dtype, number in differing.items()}


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.flatten()
    if len(flat) <= _SAMPLE:
        return flat
    length = _SAMPLE // _PIECES
    starts = (math.floor(piece * (len(flat) - length) / (_PIECES - 1)) for piece in range(_PIECES))
    return torch.cat([flat[start : start + length] for start in starts])

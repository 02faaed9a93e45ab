"""Frozen linear layers with 4-bit weights (NF4, Dettmers et al., 2023), for adapters over a quantized base (QLoRA).

    weight (out, in) -> pack -> packed (bytes,) uint8        once, on the CPU, the same bytes on every rank and device
    model, names -> use_packed_weights -> the layers' weights are packed, to be filled
    x (..., in) -> unpack by bitsandbytes' kernel -> x W^T   in each forward and backward; no unpacked copy is kept

A weight is cut into blocks of 64 elements, in the order of memory. Of each block the largest absolute value is kept in
float32, and of each element the index of the nearest of 16 levels: 4.5 bits an element. Both are in one tensor of
bytes: ZeRO-3 shards and gathers a layer as one parameter, and no cast of a model to bfloat16 rounds the scales.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minimind.native import ops

NF4 = "nf4"
_BLOCK = 64
# Quantiles of a normal distribution, scaled to -1 to 1, with an exact 0 (appendix E of the paper).
_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
# Elements that are packed at a time; a processor's cache holds them.
_CHUNK = 2**17


def packed_bytes(elements: int) -> int:
    """Bytes of a packed weight with so many elements."""
    return _index_bytes(elements) + 4 * -(-elements // _BLOCK)


def _index_bytes(elements: int) -> int:
    return -(-elements // 2)


@torch.no_grad()
def pack(weight: Tensor) -> Tensor:
    """A weight in 4 bits, (packed_bytes,) uint8 on the CPU. Equal to what bitsandbytes' quantize_4bit makes of it."""
    flat = weight.detach().cpu().flatten()
    levels = torch.tensor(_LEVELS)
    middles = ((levels[1:] + levels[:-1]) / 2).tolist()
    indices, scales = [], []
    for part in flat.split(_CHUNK):
        blocks = nn.functional.pad(part.float(), (0, -len(part) % _BLOCK)).view(-1, _BLOCK)
        largest = blocks.abs().amax(1)
        scales.append(largest)
        # A block of zeros has no scale.
        scaled = blocks / torch.where(largest > 0, largest, 1.0)[:, None]
        index = torch.zeros(scaled.numel(), dtype=torch.uint8)
        for middle in middles:
            index += scaled.view(-1) > middle
        index = index[: len(part) + len(part) % 2]
        indices.append(index[0::2] << 4 | index[1::2])
    return torch.cat([*indices, torch.cat(scales).view(torch.uint8)])


def unpack(packed: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The weight (out, in) of a packed one, on its device, by bitsandbytes' kernel."""
    library, _ = _bitsandbytes()
    count = _index_bytes(math.prod(shape))
    # A gathered parameter may begin anywhere in a buffer, and float32 values need an address that 4 divides.
    scales = packed[count:].clone().view(torch.float32)
    # bitsandbytes' kernel for CPUs (0.50) begins a block with each row: wrong if a row ends within a block.
    seen = torch.Size(shape if shape[1] % _BLOCK == 0 else (1, math.prod(shape)))
    state = library.QuantState(absmax=scales, shape=seen, dtype=dtype, blocksize=_BLOCK, quant_type=NF4)
    return library.dequantize_4bit(packed[:count, None], state).view(shape)


@functools.cache
def _bitsandbytes() -> tuple[Any, str]:
    """bitsandbytes' functions, or why they cannot be imported."""
    # It warns of an optional package for another kernel.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes.functional as library
    except Exception as error:  # noqa: BLE001 - a missing library of CUDA raises different types
        return None, f"{type(error).__name__}: {error}"
    return library, ""


@functools.cache
def quantization_obstacle(device: torch.device, dtype: torch.dtype) -> str:
    """Why 4-bit weights cannot be computed with on this device, with the remedy; empty if they can."""
    library, problem = _bitsandbytes()
    if library is None:
        return f'bitsandbytes cannot be imported ({problem}): pip install -e ".[qlora]"'
    weight = torch.linspace(-1, 1, 2 * _BLOCK).view(2, _BLOCK)
    try:
        found = unpack(pack(weight).to(device), (2, _BLOCK), dtype).float().cpu()
    except Exception as error:  # noqa: BLE001 - each backend of bitsandbytes raises its own types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return (
            f"bitsandbytes {_version()} has no 4-bit kernel that runs on this {device.type} ({reason}); install "
            "another one, or train without --quantize"
        )
    # Half of the widest gap between levels.
    if float((found - weight).abs().max()) > 0.16:
        return f"bitsandbytes {_version()} unpacks 4-bit weights wrongly on this {device.type}; install another one"
    return ""


def _version() -> str:
    import bitsandbytes

    return bitsandbytes.__version__


class PackedLinear(nn.Linear):
    """A frozen linear layer with a packed weight, which must be filled.

    Attributes:
        weight: (packed_bytes,) uint8; under ZeRO-3 empty unless it is gathered.
        bias: the layer's own, or None.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        packed = torch.empty(packed_bytes(in_features * out_features), dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_parameter("bias", None)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in); ZeRO-3 must have gathered it."""
        return unpack(self.weight.data, (self.out_features, self.in_features), dtype)

    def forward(self, input: Tensor) -> Tensor:
        out = _PackedProduct.apply(input, self)
        return out if self.bias is None else out + self.bias


class _PackedProduct(torch.autograd.Function):
    """x W^T of a packed weight. The backward unpacks it again, and needs no x, because W is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        return ops.linear(x, layer.unpacked(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ops.linear(gradient.contiguous(), ctx.layer.unpacked(gradient.dtype).t()), None


def use_packed_weights(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Replace linear layers by ones with packed weights (out, in), which must be filled."""
    for name in names:
        old = model.get_submodule(name)
        rows, columns = (old.out_features, old.in_features) if isinstance(old, nn.Linear) else (old.nf, old.nx)
        new = PackedLinear(columns, rows)
        new.bias = old.bias
        path, _, last = name.rpartition(".")
        setattr(model.get_submodule(path), last, new)

"""Attention over a whole pack as one call of a variable-length flash kernel; for 16-bit tensors on a GPU.

    segments -> VarlenPlan.of -> attend(query, key, value, plan) -> (1, T, heads, D)

Each pair gives the kernel two sequences. The queries of the first are `prefix | chosen` and attend to themselves. The
queries of the second are `rejected` and attend to `prefix | rejected`, which is not contiguous in the pack, so one
gather copies the keys and values of all sequences. The queries need no copy: they are in this order already.

The second sequence has fewer queries than keys. Its causal mask must be lower-right aligned: the last query sees all
keys. Flash kernels define it so, but torch does not promise it. Therefore a run checks the backend before it trains
(`backend_choice.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minimind.model.device_transfer import to_device

# (T, heads, D), (S, kv heads, D) twice, plan, scaling -> (T, heads, D)
Kernel = Callable[[Tensor, Tensor, Tensor, "VarlenPlan", float], Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class VarlenPlan:
    """Index tables of a pack with M sequences and S keys in total. Empty sequences are left out: kernels differ there.

    Attributes:
        keys: (S,) int64, positions in the pack of the keys, sequence after sequence.
        query_ends, key_ends: (M + 1,) int32, 0 and the cumulative numbers of queries and of keys.
        longest_query, longest_key: tokens of the longest sequence.
    """

    keys: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_key: int

    @classmethod
    def of(cls, segments: Sequence[tuple[int, int, int]], device: torch.device) -> VarlenPlan:
        """The plan of a pack, computed on the host; segments are (prefix, rest of chosen, rest of rejected)."""
        keys: list[NDArray[np.int64]] = []
        queries, seen, start = [], [], 0
        for prefix, chosen, rejected in segments:
            fork, middle = start + prefix, start + prefix + chosen
            end = middle + rejected
            for length, parts in (
                (prefix + chosen, (np.arange(start, middle),)),
                (rejected, (np.arange(start, fork), np.arange(middle, end))),
            ):
                if length:  # a pair without a rejected part has one sequence
                    keys += parts
                    queries.append(length)
                    seen.append(sum(map(len, parts)))
            start = end
        return cls(
            keys=to_device(np.concatenate(keys), device),
            query_ends=to_device(np.cumsum([0, *queries], dtype=np.int32), device),
            key_ends=to_device(np.cumsum([0, *seen], dtype=np.int32), device),
            longest_query=max(queries),
            longest_key=max(seen),
        )


def attend(query: Tensor, key: Tensor, value: Tensor, plan: VarlenPlan, scaling: float) -> Tensor:
    """Attention over a pack; query (1, heads, T, D), key and value (1, kv heads, T, D) -> (1, T, heads, D)."""
    kernel = find_kernel()
    assert kernel is not None, "the caller must check `obstacle` first"
    # Kernels take tokens before heads: (T, heads, D).
    query, key, value = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    out = kernel(query, key.index_select(0, plan.keys), value.index_select(0, plan.keys), plan, scaling)
    return out[None]


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why this backend does not support the device or dtype, or None."""
    if device.type != "cuda":
        return "flash attention needs a GPU"
    if dtype not in (torch.bfloat16, torch.float16):
        return "flash attention supports only bfloat16 and float16"
    if find_kernel() is None:
        return f"torch {torch.__version__} has no varlen_attn (new in 2.10), and flash_attn is not installed"
    return None


@functools.cache
def find_kernel() -> Kernel | None:
    """The kernel of torch, else that of the package flash_attn, else None."""
    try:
        return torch_kernel(importlib.import_module("torch.nn.attention.varlen").varlen_attn)
    except (ImportError, AttributeError):
        pass
    try:
        return _package_kernel(importlib.import_module("flash_attn").flash_attn_varlen_func)
    except (ImportError, AttributeError, OSError):  # a build for another torch raises any of these
        return None


def torch_kernel(function: Callable[..., Any]) -> Kernel:
    """`torch.nn.attention.varlen.varlen_attn` as a kernel, for each known signature.

    torch 2.10 has the argument is_causal, and neither scale nor enable_gqa. Later releases have window_size instead.
    """
    named = inspect.signature(function).parameters
    # A window of (-1, 0): any number of keys to the left of the diagonal, none to the right.
    causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in named else {"is_causal": True}

    def kernel(query: Tensor, key: Tensor, value: Tensor, plan: VarlenPlan, scaling: float) -> Tensor:
        options = dict(causal)
        # Without enable_gqa the kernel needs one key and value head for each query head.
        groups = query.shape[1] // key.shape[1]
        if groups > 1 and "enable_gqa" in named:
            options["enable_gqa"] = True
        elif groups > 1:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        if "scale" in named:
            options["scale"] = scaling
        else:
            query = with_default_scaling(query, scaling)
        longest = plan.longest_query, plan.longest_key
        return function(query, key, value, plan.query_ends, plan.key_ends, *longest, **options)

    return kernel


def _package_kernel(function: Callable[..., Any]) -> Kernel:
    """`flash_attn.flash_attn_varlen_func` as a kernel; since 2.1 its causal mask is lower-right aligned."""

    def kernel(query: Tensor, key: Tensor, value: Tensor, plan: VarlenPlan, scaling: float) -> Tensor:
        longest = plan.longest_query, plan.longest_key
        ends = plan.query_ends, plan.key_ends
        return function(query, key, value, *ends, *longest, softmax_scale=scaling, causal=True)

    return kernel


def with_default_scaling(query: Tensor, scaling: float) -> Tensor:
    """`query` (..., D), multiplied so that the scores of a kernel with fixed scaling D^-0.5 are scaled by `scaling`."""
    factor = scaling * query.shape[-1] ** 0.5
    return query if abs(factor - 1) < 1e-6 else query * factor

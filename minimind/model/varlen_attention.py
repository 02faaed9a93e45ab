"""Attention over a whole pack as one call of a variable-length flash kernel, on a GPU, in 16 bits.

    segments -> VarlenPlan.of -> attend(query, key, value, plan) -> (1, T, heads, D)

In the order of the pack the queries are sequences already: per pair `prefix | chosen`, then `rejected`. The keys of the
first are its own; those of the second are `prefix | rejected`, which one gather brings together. Where a sequence has
fewer queries than keys, causal must mean lower right: the last query sees all keys. The flash kernels define it so, but
torch promises it nowhere; the check at the start of a run (`backends.py`) is what a user can rely on.
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

from minimind.model.placing import placed

# (T, heads, D), (S, kv heads, D) twice, plan, scaling -> (T, heads, D)
Kernel = Callable[[Tensor, Tensor, Tensor, "VarlenPlan", float], Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class VarlenPlan:
    """The sequences of a pack; M of them, S keys in all. None is empty: kernels disagree about those.

    Attributes:
        keys: (S,) int64, the position in the pack of each sequence's keys, one sequence after the other.
        query_ends, key_ends: (M + 1,) int32, from 0 where each sequence ends among queries and keys.
        longest_query, longest_key: tokens.
    """

    keys: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_key: int

    @classmethod
    def of(cls, segments: Sequence[tuple[int, int, int]], device: torch.device) -> VarlenPlan:
        """The plan of a pack with these segments: lengths of prefix, rest of chosen, rest of rejected per pair."""
        keys: list[NDArray[np.int64]] = []
        queries, seen, start = [], [], 0
        for prefix, chosen, rejected in segments:
            fork, middle = start + prefix, start + prefix + chosen
            end = middle + rejected
            for length, parts in (
                (prefix + chosen, (np.arange(start, middle),)),
                (rejected, (np.arange(start, fork), np.arange(middle, end))),
            ):
                if length:
                    keys += parts
                    queries.append(length)
                    seen.append(sum(map(len, parts)))
            start = end
        return cls(
            keys=placed(np.concatenate(keys), device),
            query_ends=placed(np.cumsum([0, *queries], dtype=np.int32), device),
            key_ends=placed(np.cumsum([0, *seen], dtype=np.int32), device),
            longest_query=max(queries),
            longest_key=max(seen),
        )


def attend(query: Tensor, key: Tensor, value: Tensor, plan: VarlenPlan, scaling: float) -> Tensor:
    """Attention over a pack; query (1, heads, T, D), key and value (1, kv heads, T, D) -> (1, T, heads, D)."""
    kernel = find_kernel()
    assert kernel is not None, "who takes this has asked `obstacle` before"
    query, key, value = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    out = kernel(query, key.index_select(0, plan.keys), value.index_select(0, plan.keys), plan, scaling)
    return out[None]


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this cannot be used there, None if nothing speaks against it."""
    if device.type != "cuda":
        return "flash attention needs a GPU"
    if dtype not in (torch.bfloat16, torch.float16):
        return "flash attention is for bfloat16 and float16"
    if find_kernel() is None:
        return f"torch {torch.__version__} has no varlen_attn (2.10 has), and flash_attn is not installed"
    return None


@functools.cache
def find_kernel() -> Kernel | None:
    """torch's own function, else that of the package flash_attn, else None."""
    try:
        return torch_kernel(importlib.import_module("torch.nn.attention.varlen").varlen_attn)
    except (ImportError, AttributeError):
        pass
    try:
        return _package_kernel(importlib.import_module("flash_attn").flash_attn_varlen_func)
    except (ImportError, AttributeError, OSError):  # a build for another torch ends in any of them
        return None


def torch_kernel(function: Callable[..., Any]) -> Kernel:
    """`torch.nn.attention.varlen.varlen_attn` as a kernel, whatever its release calls its arguments: 2.10 has is_causal
    and neither scale nor enable_gqa, later ones have window_size."""
    named = inspect.signature(function).parameters
    causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in named else {"is_causal": True}

    def kernel(query: Tensor, key: Tensor, value: Tensor, plan: VarlenPlan, scaling: float) -> Tensor:
        options = dict(causal)
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
    """`flash_attn.flash_attn_varlen_func` as a kernel; from 2.1 on its causal means lower right."""

    def kernel(query: Tensor, key: Tensor, value: Tensor, plan: VarlenPlan, scaling: float) -> Tensor:
        longest = plan.longest_query, plan.longest_key
        ends = plan.query_ends, plan.key_ends
        return function(query, key, value, *ends, *longest, softmax_scale=scaling, causal=True)

    return kernel


def with_default_scaling(query: Tensor, scaling: float) -> Tensor:
    """Queries (..., D) whose scores, scaled by D^-0.5, are those of `query` scaled by `scaling`."""
    factor = scaling * query.shape[-1] ** 0.5
    return query if abs(factor - 1) < 1e-6 else query * factor

"""Exact attention over packs of preference pairs, for any model that uses Hugging Face's attention interface.

A pack is one sequence that holds, pair after pair, `prefix | rest of chosen | rest of rejected`. For each pair:

    prefix and chosen: causal attention over prefix | chosen
    rejected:          lower-right causal attention over prefix | rejected

Each row attends to exactly its own tokens, and the shared prefix is computed once. Models select this function by name
(`attn_implementation=PACKED_ATTENTION`) and pass `pack=PackSegments(...)` through their keyword arguments, so Llama,
Qwen3 and other models need no change:

    model(..., pack) -> packed_attention -> BACKENDS[pack.backend] -> attention output

What a model wants beyond causal softmax attention (sinks, soft capping, a window, a bias) is refused, never ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from minimind.errors import PackError
from minimind.model import flex_attention, varlen_attention
from minimind.model.device_transfer import to_device
from minimind.native import ops, torch_ops

PACKED_ATTENTION = "minimind_packed_pairs"
# Backends: the project's CPU kernel (SDPA where it does not apply); two SDPA calls for each pair; one call of
# variable-length flash attention; one call of FlexAttention.
NATIVE, SDPA, VARLEN, FLEX = "native", "sdpa", "varlen", "flex"

# For each pair the number of tokens of (prefix, rest of chosen, rest of rejected), in the order of the pack.
# Keyword arguments with which models pass on what does not change causal softmax attention over a pack.
_WITHOUT_EFFECT = frozenset(
    {"position_ids", "cache_position", "position_embeddings", "use_cache", "layer_idx", "output_router_logits"}
)

Segments = tuple[tuple[int, int, int], ...]
Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True, eq=False)
class PackSegments:
    """The segments of a pack, the backend that attends over it, and a cache of the tables that backends need.

    Attributes:
        segments: lengths of the parts of each pair; their sum is T.
        backend: a key of `BACKENDS`.
    """

    segments: Segments
    backend: str = NATIVE
    _cache: dict[Hashable, object] = dataclasses.field(default_factory=dict, repr=False)

    def cached(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """The result of `compute`, computed by the first layer that asks for this key and used by all layers."""
        if key not in self._cache:
            self._cache[key] = compute()
        return cast(Value, self._cache[key])

    # Not compiled: a compiled block would be recompiled for each number of pairs.
    @torch.compiler.disable
    def lengths(self, device: torch.device) -> Tensor:
        """Lengths of all segments in the order of the pack, (3N,) int64; cached."""
        return self.cached(("lengths", device), lambda: to_device(np.array(self.segments, np.int64).ravel(), device))

    @property
    def longest_row(self) -> int:
        """Number of tokens of the longest row."""
        return max(prefix + max(chosen, rejected) for prefix, chosen, rejected in self.segments)

    def rejected_mask(self, prefix: int, rejected: int, device: torch.device) -> Tensor:
        """Lower-right causal mask (rejected, prefix + rejected), True where attention is allowed; cached."""
        return self.cached((prefix, rejected, device), lambda: torch_ops.rejected_mask(prefix, rejected, device))


# Not compiled: the loop over pairs would be recompiled for each pack.
@torch.compiler.disable
def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    pack: PackSegments | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention over a pack; query (1, heads, T, D), key and value (1, kv heads, T, D) -> (1, T, heads, D).

    Raises:
        PackError: the layer wants something else than causal softmax attention over the tokens of each row.
    """
    if pack is None:
        raise PackError("its layers do not pass the pack on to the attention function")
    if attention_mask is not None:
        raise PackError("its layers make an attention mask of their own")
    if is_causal is False or (is_causal is None and getattr(module, "is_causal", True) is False):
        raise PackError("its attention is not causal")
    if query.shape[2] != key.shape[2]:
        raise PackError("its attention has keys of other tokens than its queries")
    if sliding_window is not None and sliding_window < pack.longest_row:
        raise PackError(f"it attends over a sliding window of {sliding_window} tokens")
    for name, value_of in others.items():
        if value_of is not None and value_of is not False and name not in _WITHOUT_EFFECT:
            raise PackError(f"its attention takes {name!r}, which packs do not support")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if dropout:  # no other backend supports dropout
        out = sdpa_by_segment(query, key, value, pack, scaling, dropout)
    else:
        out = BACKENDS[pack.backend](query, key, value, pack, scaling)
    # Some models take a view of it. Models that reshape it would copy it there.
    return out.contiguous(), None


def sdpa_by_segment(
    query: Tensor, key: Tensor, value: Tensor, pack: PackSegments, scaling: float, dropout: float = 0.0
) -> Tensor:
    """Two calls of torch's SDPA for each pair: any device, any dtype. All other backends are tested against it."""
    return torch_ops.packed_attention(
        query, key, value, pack.segments, scaling, mask=pack.rejected_mask, dropout=dropout
    )


def _native(query: Tensor, key: Tensor, value: Tensor, pack: PackSegments, scaling: float) -> Tensor:
    return ops.packed_attention(query, key, value, pack.segments, scaling, pack.rejected_mask)


def _varlen(query: Tensor, key: Tensor, value: Tensor, pack: PackSegments, scaling: float) -> Tensor:
    device = query.device
    plan = pack.cached((VARLEN, device), lambda: varlen_attention.VarlenPlan.of(pack.segments, device))
    return varlen_attention.attend(query, key, value, plan, scaling)


def _flex(query: Tensor, key: Tensor, value: Tensor, pack: PackSegments, scaling: float) -> Tensor:
    device = query.device
    mask = pack.cached((FLEX, device), lambda: flex_attention.block_mask(pack.segments, device))
    return flex_attention.attend(query, key, value, mask, scaling)


# query (1, heads, T, D), key, value (1, kv heads, T, D), segments, scaling -> (1, T, heads, D)
Backend = Callable[[Tensor, Tensor, Tensor, PackSegments, float], Tensor]
BACKENDS: Mapping[str, Backend] = {NATIVE: _native, SDPA: sdpa_by_segment, VARLEN: _varlen, FLEX: _flex}

AttentionInterface.register(PACKED_ATTENTION, packed_attention)

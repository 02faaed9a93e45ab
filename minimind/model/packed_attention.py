"""The one seam: exact attention over packs of preference pairs, for any model behind Hugging Face's interface.

A pack is one sequence that holds, pair after pair, `prefix | rest of chosen | rest of rejected`. For each pair:

    prefix and chosen: causal attention over prefix | chosen
    rejected:          lower-right causal attention over prefix | rejected

so that each half sees exactly the tokens of its own row, and the shared prefix is computed once. Models reach this
by name (`attn_implementation=PACKED_ATTENTION`) and by passing `pack=PackLayout(...)` through their keyword
arguments; Llama, Qwen3 and the rest need no line of their own. The layout says by which of `BACKENDS` it is computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from minimind.model import flex_attention, varlen_attention
from minimind.model.placing import placed
from minimind.native import ops, torch_ops

PACKED_ATTENTION = "minimind_packed_pairs"
# What computes it: the CPU's own kernel where it applies, torch's SDPA for each part of each pair, one call of flash
# attention, one of FlexAttention.
NATIVE, SDPA, VARLEN, FLEX = "native", "sdpa", "varlen", "flex"

Made = TypeVar("Made")


@dataclasses.dataclass(frozen=True, eq=False)
class PackLayout:
    """Where the pairs of a pack lie, and what attends to them.

    Attributes:
        segments: per pair the number of tokens of (prefix, rest of chosen, rest of rejected).
        backend: a name of `BACKENDS`.
    """

    segments: tuple[tuple[int, int, int], ...]
    backend: str = NATIVE
    _made: dict[Hashable, object] = dataclasses.field(default_factory=dict, repr=False)

    def once(self, what: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gives, made once a pack: by the first layer, for all of them."""
        if what not in self._made:
            self._made[what] = make()
        return cast(Made, self._made[what])

    # Compiled blocks call this as it is: they would be compiled anew for every number of pairs.
    @torch.compiler.disable
    def lengths(self, device: torch.device) -> Tensor:
        """The segments' lengths in the order of the pack, (3N,) int64; made once a pack."""
        return self.once(("lengths", device), lambda: placed(np.array(self.segments, np.int64).ravel(), device))

    def rejected_mask(self, prefix: int, rejected: int, device: torch.device) -> Tensor:
        """Lower-right causal mask (rejected, prefix + rejected), True where attention is allowed; made once a pack."""
        return self.once((prefix, rejected, device), lambda: torch_ops.rejected_mask(prefix, rejected, device))


# Compiled blocks call this as it is: its loop over pairs would be compiled anew for every pack.
@torch.compiler.disable
def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    pack: PackLayout,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention over a pack; query (1, heads, T, D), key and value (1, kv heads, T, D) -> (1, T, heads, D)."""
    assert attention_mask is None, "a pack has no mask: its layout says who sees whom"
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if dropout:  # which only SDPA has
        return by_segment(query, key, value, pack, scaling, dropout), None
    return BACKENDS[pack.backend](query, key, value, pack, scaling), None


def by_segment(
    query: Tensor, key: Tensor, value: Tensor, pack: PackLayout, scaling: float, dropout: float = 0.0
) -> Tensor:
    """By torch's SDPA, two calls for each pair: anywhere, in any dtype, and the oracle of all others."""
    return torch_ops.packed_attention(
        query, key, value, pack.segments, scaling, mask=pack.rejected_mask, dropout=dropout
    )


def _native(query: Tensor, key: Tensor, value: Tensor, pack: PackLayout, scaling: float) -> Tensor:
    return ops.packed_attention(query, key, value, pack.segments, scaling, pack.rejected_mask)


def _varlen(query: Tensor, key: Tensor, value: Tensor, pack: PackLayout, scaling: float) -> Tensor:
    where = query.device
    plan = pack.once((VARLEN, where), lambda: varlen_attention.VarlenPlan.of(pack.segments, where))
    return varlen_attention.attend(query, key, value, plan, scaling)


def _flex(query: Tensor, key: Tensor, value: Tensor, pack: PackLayout, scaling: float) -> Tensor:
    where = query.device
    mask = pack.once((FLEX, where), lambda: flex_attention.block_mask(pack.segments, where))
    return flex_attention.attend(query, key, value, mask, scaling)


# query (1, heads, T, D), key, value (1, kv heads, T, D), layout, scaling -> (1, T, heads, D)
Backend = Callable[[Tensor, Tensor, Tensor, PackLayout, float], Tensor]
BACKENDS: Mapping[str, Backend] = {NATIVE: _native, SDPA: by_segment, VARLEN: _varlen, FLEX: _flex}

AttentionInterface.register(PACKED_ATTENTION, packed_attention)

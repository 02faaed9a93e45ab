"""The one seam: exact attention over packs of preference pairs, for any model behind Hugging Face's interface.

A pack is one sequence that holds, pair after pair, `prefix | rest of chosen | rest of rejected`. For each pair:

    prefix and chosen: causal attention over prefix | chosen
    rejected:          lower-right causal attention over prefix | rejected

so that each half sees exactly the tokens of its own row, and the shared prefix is computed once. Models reach this
by name (`attn_implementation=PACKED_ATTENTION`) and by passing `pack=PackLayout(...)` through their keyword
arguments; Llama, Qwen3 and the rest need no line of their own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from minimind import native

PACKED_ATTENTION = "minimind_packed_pairs"


@dataclasses.dataclass(frozen=True, eq=False)
class PackLayout:
    """Where the pairs of a pack lie.

    Attributes:
        segments: per pair the number of tokens of (prefix, rest of chosen, rest of rejected).
    """

    segments: tuple[tuple[int, int, int], ...]
    _masks: dict[tuple[int, int], Tensor] = dataclasses.field(default_factory=dict, repr=False)

    def lengths(self, device: torch.device) -> Tensor:
        """The segments' lengths in the order of the pack, (3N,) int64."""
        return torch.tensor(self.segments, device=device).flatten()

    def rejected_mask(self, prefix: int, rejected: int, device: torch.device) -> Tensor:
        """Lower-right causal mask (rejected, prefix + rejected), True where attention is allowed; made once a pack."""
        key = (prefix, rejected)
        if key not in self._masks:
            allowed = torch.ones(rejected, prefix + rejected, dtype=torch.bool, device=device)
            self._masks[key] = allowed.tril(prefix)
        return self._masks[key]


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
    if native.applies(query, key, value) and not dropout:
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        # Views both ways; the gradient of an index would be filled with zeros first.
        tensors = (x.squeeze(0) for x in (query, key, value))
        return native.packed_attention(*tensors, pack.segments, scaling)[None], None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    outputs, start = [], 0
    for prefix, chosen, rejected in pack.segments:
        fork = start + prefix
        middle = fork + chosen
        end = middle + rejected
        if middle > start:
            own = [x[:, :, start:middle] for x in (query, key, value)]
            outputs.append(
                F.scaled_dot_product_attention(own[0], own[1], own[2], dropout_p=dropout, scale=scaling, is_causal=True)
            )
        if end > middle:
            seen_key, seen_value = (torch.cat((x[:, :, start:fork], x[:, :, middle:end]), 2) for x in (key, value))
            mask = pack.rejected_mask(prefix, rejected, query.device)
            outputs.append(
                F.scaled_dot_product_attention(
                    query[:, :, middle:end], seen_key, seen_value, attn_mask=mask, dropout_p=dropout, scale=scaling
                )
            )
        start = end
    return torch.cat(outputs, dim=2).transpose(1, 2), None


AttentionInterface.register(PACKED_ATTENTION, packed_attention)

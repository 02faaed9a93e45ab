"""Attention over a whole pack as one FlexAttention call: a kernel that torch compiles for the pack's mask.

    segments -> block_mask -> attend(query, key, value, mask) -> (1, T, heads, D)

A block mask says, for each block of 128 queries, which blocks of 128 keys they see none of, a part of, or whole; only
within parts is a token's own mask asked. It is computed from the segments; nothing of size (T, T) exists.

The call is compiled for symbolic lengths: a kernel for each length would be compiled in most steps, torch would give
up after eight, and then hold scores of (heads, T, T). Packs are padded to whole blocks, with tokens that see only each
other, so that no length takes the kernel's paths for short or ragged ones, and one compile serves all. `fullgraph`
makes an error of giving up; the check at the start of a run tries more lengths than would be forgiven.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from minimind.model.placing import placed
from minimind.model.varlen_attention import with_default_scaling

BLOCK = 128


def attend(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: float) -> Tensor:
    """Attention over a pack; query (1, heads, T, D), key and value (1, kv heads, T, D) -> (1, T, heads, D)."""
    tokens, heads, kv_heads = query.shape[2], query.shape[1], key.shape[1]
    # Lengths are symbols to the compiler, and so would be a number among the arguments, which no kernel takes as a
    # scaling; the default is computed from D.
    query = with_default_scaling(query, scaling)
    query, key, value = (_whole_blocks(x) for x in (query, key, value))
    run: Any = compiled() if query.is_cuda else flex_attention
    out = run(query, key, value, block_mask=mask, enable_gqa=heads != kv_heads)
    return out[:, :, :tokens].transpose(1, 2)


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this cannot be used there, None if nothing speaks against it."""
    return None if device.type == "cuda" else "torch trains through FlexAttention on a GPU only"


@functools.cache
def compiled(backend: str | Callable[..., Any] = "inductor") -> Callable[..., Tensor]:
    """FlexAttention compiled once for packs of all lengths."""
    return torch.compile(flex_attention, dynamic=True, fullgraph=True, backend=backend)


def _whole_blocks(x: Tensor) -> Tensor:
    """(1, heads, T, D) with zeros up to a multiple of a block; always of one memory layout, which a compile is for."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % BLOCK)).contiguous()


def block_mask(segments: Sequence[tuple[int, int, int]], device: torch.device) -> BlockMask:
    """The mask of a pack with these segments: lengths of prefix, rest of chosen, rest of rejected per pair."""
    runs = _runs(segments)
    first, hidden, shown = (
        placed(np.repeat(column, runs[:, 1] - runs[:, 0]).astype(np.int32), device) for column in runs[:, 2:].T
    )

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (key >= first[query]) & (key <= query)
        return own & ((key < hidden[query]) | (key >= shown[query]))

    (parts, which_parts), (whole, which_whole) = (
        (placed(number, device), placed(which, device)) for number, which in map(_listed, _blocks(runs))
    )
    return BlockMask.from_kv_blocks(parts, which_parts, whole, which_whole, BLOCK_SIZE=BLOCK, mask_mod=sees)


def _runs(segments: Sequence[tuple[int, int, int]]) -> NDArray[np.int64]:
    """Runs of tokens that see the same but for causality, (M, 5): begin, end, the first key they see, and where of the
    keys from there on the hidden ones begin and end. The padding is a run of its own."""
    runs, start = [], 0
    for prefix, chosen, rejected in segments:
        fork, middle = start + prefix, start + prefix + chosen
        end = middle + rejected
        runs += [(start, middle, start, start, start), (middle, end, start, fork, middle)]
        start = end
    runs.append((start, start + -start % BLOCK, start, start, start))
    return np.array([run for run in runs if run[1] > run[0]], dtype=np.int64)


def _blocks(runs: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For each block of queries which blocks of keys it sees a part of, and which whole, (T / 128, T / 128) each."""
    edges = np.arange(0, runs[-1, 1], BLOCK)
    # Pieces of runs that lie in one block; each with its run.
    begins = np.union1d(runs[:, 0], edges)
    ends = np.append(begins[1:], runs[-1, 1])
    first, hidden, shown = runs[np.searchsorted(runs[:, 0], begins, side="right") - 1, 2:].T

    def seen(query: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many keys of each block one query of each piece sees."""
        return _overlap(first, query + 1, edges) - _overlap(hidden, shown, edges)

    # A piece's last query sees all that any of it does, its first only what all do.
    pieces = np.searchsorted(begins, edges)
    some = np.logical_or.reduceat(seen(ends - 1) > 0, pieces, axis=0)
    whole = np.logical_and.reduceat(seen(begins) == BLOCK, pieces, axis=0)
    return some & ~whole, whole


def _overlap(low: NDArray[np.int64], high: NDArray[np.int64], edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Keys of [low, high) in each block, (pieces, blocks)."""
    return np.maximum(np.minimum(high[:, None], edges + BLOCK) - np.maximum(low[:, None], edges), 0)


def _listed(blocks: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """A table of blocks as FlexAttention wants it: how many in each row (1, 1, rows), and which (1, 1, rows, columns),
    those that count first."""
    order = np.argsort(~blocks, axis=1, kind="stable")
    return blocks.sum(1, dtype=np.int32)[None, None], order.astype(np.int32)[None, None]

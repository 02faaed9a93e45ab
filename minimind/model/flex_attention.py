"""Attention over a whole pack as one call of FlexAttention: a kernel that torch compiles for the mask of the pack.

    segments -> block_mask -> attend(query, key, value, mask) -> (1, T, heads, D)

A block mask states for each block of 128 queries which blocks of 128 keys it attends to fully, and which partly. The
kernel skips all other blocks and evaluates the mask of single tokens only in the partial ones. The block mask is
computed from the segments, so no tensor of size (T, T) is allocated.

The call is compiled once for symbolic lengths. Compiled for fixed lengths, it would be recompiled in most steps; after
eight recompiles torch would run uncompiled and allocate scores (heads, T, T). With `fullgraph` torch raises an error
instead, and the check before training (`backend_choice.py`) uses more than eight lengths. Packs are padded to a
multiple of 128 with tokens that attend only to each other, so that the kernel's special code for short and ragged
lengths is never needed.
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

from minimind.model.device_transfer import to_device
from minimind.model.varlen_attention import with_default_scaling

# Tokens of a block, FlexAttention's default block size.
BLOCK = 128


def attend(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: float) -> Tensor:
    """Attention over a pack; query (1, heads, T, D), key and value (1, kv heads, T, D) -> (1, T, heads, D)."""
    tokens, heads, kv_heads = query.shape[2], query.shape[1], key.shape[1]
    # The compiler makes numbers among the arguments symbolic, and no kernel accepts a symbolic scaling. So the scaling
    # goes into the queries, and the kernel uses its default, which depends only on D.
    query = with_default_scaling(query, scaling)
    query, key, value = (_pad_to_blocks(x) for x in (query, key, value))
    run: Any = compiled() if query.is_cuda else flex_attention
    out = run(query, key, value, block_mask=mask, enable_gqa=heads != kv_heads)
    return out[:, :, :tokens].transpose(1, 2)


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why this backend does not support the device or dtype, or None."""
    return None if device.type == "cuda" else "torch has gradients of FlexAttention only on a GPU"


@functools.cache
def compiled(backend: str | Callable[..., Any] = "inductor") -> Callable[..., Tensor]:
    """FlexAttention, compiled once for packs of all lengths."""
    return torch.compile(flex_attention, dynamic=True, fullgraph=True, backend=backend)


def _pad_to_blocks(x: Tensor) -> Tensor:
    """Pad x (1, heads, T, D) with zeros to a multiple of 128 tokens. Contiguous: torch recompiles for new strides."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % BLOCK)).contiguous()


def block_mask(segments: Sequence[tuple[int, int, int]], device: torch.device) -> BlockMask:
    """The mask of a pack. `segments`: lengths of (prefix, rest of chosen, rest of rejected) of each pair."""
    runs = _runs(segments)
    # For each token: its first visible key, and the range of later keys [hidden, shown) that it must not see.
    first, hidden, shown = (
        to_device(np.repeat(column, runs[:, 1] - runs[:, 0]).astype(np.int32), device) for column in runs[:, 2:].T
    )

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        causal = (key >= first[query]) & (key <= query)
        return causal & ((key < hidden[query]) | (key >= shown[query]))

    (partial_counts, partial_indices), (full_counts, full_indices) = (
        (to_device(counts, device), to_device(indices, device))
        for counts, indices in map(_block_lists, _visible_blocks(runs))
    )
    return BlockMask.from_kv_blocks(
        partial_counts, partial_indices, full_counts, full_indices, BLOCK_SIZE=BLOCK, mask_mod=visible
    )


def _runs(segments: Sequence[tuple[int, int, int]]) -> NDArray[np.int64]:
    """Runs of consecutive tokens with the same visible keys except for causality, (M, 5) int64.

    Columns: begin and end of the run, its first visible key, begin and end of the hidden keys after it. A rejected part
    sees its prefix and itself; the chosen part between them is hidden. The padding is a run of its own.
    """
    runs, start = [], 0
    for prefix, chosen, rejected in segments:
        fork, middle = start + prefix, start + prefix + chosen
        end = middle + rejected
        runs += [(start, middle, start, start, start), (middle, end, start, fork, middle)]
        start = end
    runs.append((start, start + -start % BLOCK, start, start, start))
    return np.array([run for run in runs if run[1] > run[0]], dtype=np.int64)


def _visible_blocks(runs: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which key blocks each query block sees partly, and which fully: (T / 128, T / 128) each."""
    edges = np.arange(0, runs[-1, 1], BLOCK)
    # Cut the runs at block borders: each piece belongs to one run and one block.
    begins = np.union1d(runs[:, 0], edges)
    ends = np.append(begins[1:], runs[-1, 1])
    first, hidden, shown = runs[np.searchsorted(runs[:, 0], begins, side="right") - 1, 2:].T

    def count_visible(query: NDArray[np.int64]) -> NDArray[np.int64]:
        """For one query of each piece, the number of visible keys in each block: (pieces, blocks)."""
        return _overlap(first, query + 1, edges) - _overlap(hidden, shown, edges)

    # Attention is causal: the last query of a piece sees every key that any of its queries sees, and the first query
    # sees only keys that all of them see.
    pieces = np.searchsorted(begins, edges)
    some = np.logical_or.reduceat(count_visible(ends - 1) > 0, pieces, axis=0)
    full = np.logical_and.reduceat(count_visible(begins) == BLOCK, pieces, axis=0)
    return some & ~full, full


def _overlap(low: NDArray[np.int64], high: NDArray[np.int64], edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of keys of the range [low, high) in each block: (pieces, blocks)."""
    return np.maximum(np.minimum(high[:, None], edges + BLOCK) - np.maximum(low[:, None], edges), 0)


def _block_lists(blocks: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """A table of blocks (rows, columns) in FlexAttention's format.

    Returns: the number of True blocks in each row (1, 1, rows), and column indices (1, 1, rows, columns), those of
        the True blocks first.
    """
    order = np.argsort(~blocks, axis=1, kind="stable")
    return blocks.sum(1, dtype=np.int32)[None, None], order.astype(np.int32)[None, None]

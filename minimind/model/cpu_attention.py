"""Attention over packs on a CPU in bfloat16: blocks of queries as plain matrix products, about twice torch's own speed.

    for each block of at most 128 queries:  scores = q k' -> softmax -> p v        backward recomputes the softmax

torch's fused kernel multiplies many small tiles, each product too small for the machine; here a block of queries meets
all keys that it may see at once, all heads that share a key head together, and keys that it may not see are left out
rather than masked. Scores are rounded to bfloat16, as transformers' own eager attention rounds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from minimind import native

Segments = tuple[tuple[int, int, int], ...]
Range = tuple[int, int]

# Queries of one product: large enough to be worth one, small enough that little of its score block is masked.
_BLOCK = 128


def cpu_packed_attention(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float) -> Tensor:
    """Exact attention over a pack, lower-right causal within each row of each pair.

    Args:
        query: (heads, T, D) bfloat16.
        key, value: (kv heads, T, D) bfloat16; each serves heads / kv heads heads.
        segments: per pair the lengths of prefix, rest of chosen, rest of rejected.
        scaling: factor of the scores.

    Returns: (heads, T, D) bfloat16.
    """
    return _CpuPackedAttention.apply(query, key, value, segments, scaling)


def _blocks(segments: Segments) -> Iterator[tuple[Range, tuple[Range, ...]]]:
    """Ranges of queries, each with the ranges of keys they see; the last key range ends where the queries end."""
    start = 0
    for prefix, chosen, rejected in segments:
        fork, middle, end = start + prefix, start + prefix + chosen, start + prefix + chosen + rejected
        for first, last in _split(start, middle):
            yield (first, last), ((start, last),)
        for first, last in _split(middle, end):
            yield (first, last), ((start, fork), (middle, last))
        start = end


def _split(start: int, end: int) -> Iterator[Range]:
    """A range in parts of about equal size, none larger than a block."""
    count = -(-(end - start) // _BLOCK)
    for part in range(count):
        yield start + part * (end - start) // count, start + (part + 1) * (end - start) // count


def _take(x: Tensor, ranges: tuple[Range, ...]) -> Tensor:
    """Rows of x (heads, T, D) in the ranges."""
    parts = [x[:, first:last] for first, last in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _probabilities(query: Tensor, key: Tensor, rows: int, scaling: float) -> Tensor:
    """Softmax of the scores, (kv heads, groups * rows, keys), for query (kv heads, groups * rows, D)."""
    return native.causal_softmax_(torch.bmm(query, key.transpose(1, 2)), rows, scaling)


def _grouped(x: Tensor, first: int, last: int, kv_heads: int) -> Tensor:
    """Tokens of x (heads, T, D) as (kv heads, groups * rows, D): heads that share keys are one matrix."""
    return x[:, first:last].reshape(kv_heads, -1, x.shape[-1])


class _CpuPackedAttention(torch.autograd.Function):
    """Keeps queries, keys and values; the probabilities are made again in backward."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float) -> Tensor:
        heads, tokens, size = query.shape
        # Token by token in memory, as the projection after it reads it.
        out = query.new_empty(tokens, heads, size).transpose(0, 1)
        for (first, last), seen in _blocks(segments):
            probabilities = _probabilities(
                _grouped(query, first, last, len(key)), _take(key, seen), last - first, scaling
            )
            out[:, first:last] = torch.bmm(probabilities, _take(value, seen)).view(heads, last - first, size)
        ctx.save_for_backward(query, key, value)
        ctx.segments, ctx.scaling = segments, scaling
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value = ctx.saved_tensors
        heads, _, size = query.shape
        grad_query = torch.empty_like(query)
        # Many blocks add to one key: in float32, or the small ones would be lost.
        grad_key = torch.zeros(key.shape, dtype=torch.float32)
        grad_value = torch.zeros(value.shape, dtype=torch.float32)
        for (first, last), seen in _blocks(ctx.segments):
            rows = last - first
            grouped, grad = (_grouped(x, first, last, len(key)) for x in (query, grads[0]))
            keys, values = _take(key, seen), _take(value, seen)
            probabilities = _probabilities(grouped, keys, rows, ctx.scaling)
            grad_scores = native.causal_softmax_backward_(
                probabilities, torch.bmm(grad, values.transpose(1, 2)), rows, ctx.scaling
            )
            grad_query[:, first:last] = torch.bmm(grad_scores, keys).view(heads, rows, size)
            to_keys = torch.bmm(grad_scores.transpose(1, 2), grouped)
            to_values = torch.bmm(probabilities.transpose(1, 2), grad)
            place = 0
            for begin, end in seen:
                part = slice(place, place + end - begin)
                native.add_to_(grad_key[:, begin:end], to_keys[:, part])
                native.add_to_(grad_value[:, begin:end], to_values[:, part])
                place = part.stop
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None

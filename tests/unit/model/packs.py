"""Packs of many shapes and random tensors over them, for the tests of attention backends."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from minimind.model.packed_attention import Backend, PackSegments, sdpa_by_segment

Segments = tuple[tuple[int, int, int], ...]

# Each part of a pair is empty once; pairs end at a multiple of 128 and elsewhere; several pairs share a block of 128.
SHAPES: tuple[Segments, ...] = (
    ((4, 3, 2),),
    ((1, 0, 0),),
    ((4, 3, 2), (1, 5, 6), (7, 1, 1)),
    ((0, 3, 4),),
    ((0, 0, 4), (0, 4, 0)),
    ((3, 0, 4), (3, 4, 0)),
    ((5, 0, 0), (2, 1, 1)),
    ((128, 128, 128),),
    ((100, 28, 128), (5, 5, 5)),
    ((300, 150, 129), (1, 1, 1), (2, 260, 3)),
    ((40, 400, 60),),
)


def segments(longest: int = 150) -> st.SearchStrategy[Segments]:
    """Packs of one to four pairs. Any part may be empty, but not the whole pack."""
    part = st.integers(0, longest)
    pairs = st.lists(st.tuples(part, part, part), min_size=1, max_size=4)
    return pairs.map(tuple).filter(lambda pack: sum(map(sum, pack)) > 0)


def tensors(shape: Segments, heads: int = 4, kv_heads: int = 2, size: int = 16) -> list[Tensor]:
    """Query, key, value (1, heads, T, D) and a gradient of the output (1, T, heads, D)."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(map(sum, shape))
    sizes = [(1, number, tokens, size) for number in (heads, kv_heads, kv_heads)] + [(1, tokens, heads, size)]
    return [torch.randn(one, generator=generator) for one in sizes]


def results(backend: Backend, shape: Segments, scaling: float = 0.3, **sizes: int) -> list[Tensor]:
    """Output and gradients of query, key, value."""
    *inputs, grad = tensors(shape, **sizes)
    leaves = [x.requires_grad_() for x in inputs]
    out = backend(*leaves, PackSegments(shape), scaling)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def assert_as_sdpa(backend: Backend, shape: Segments, scaling: float = 0.3, **sizes: int) -> None:
    """Output and gradients in float32 equal those of SDPA for each segment."""
    pairs = zip(
        results(backend, shape, scaling, **sizes), results(sdpa_by_segment, shape, scaling, **sizes), strict=True
    )
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)

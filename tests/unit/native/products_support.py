"""Matrices and comparisons for the tests of products."""

from __future__ import annotations

import torch

# Rows, columns, depth: smaller than a tile, a block, a panel, a vector or a depth block, and a little larger than whole
# ones. The last one has too few rows for the kernel: torch multiplies.
SHAPES = [
    (32, 1, 2),
    (33, 34, 7),
    (48, 64, 512),
    (96, 64, 30),
    (101, 70, 34),
    (100, 129, 1030),
    (301, 200, 1201),
    (5, 9, 4),
]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def spaced(matrix: torch.Tensor, gap: float = torch.nan) -> torch.Tensor:
    """The same numbers as a view with `gap` between its rows, before and after them."""
    rows, columns = matrix.shape
    wide = torch.full((rows + 2, columns + 6), gap, dtype=matrix.dtype)
    view = wide[1:-1, 2 : 2 + columns]
    view.copy_(matrix)
    return view


def assert_product(ours: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Every element is the exact sum, up to roundings of a float32 sum and one rounding to bfloat16."""
    a, b = a.double(), b.double()
    allowed = (a @ b).abs() * 2**-8 + (a.abs() @ b.abs()) * 1e-6
    assert ours.dtype == torch.bfloat16
    assert ((ours.double() - a @ b).abs() <= allowed).all()


def gradients(function, inputs, grads, learns, dtype):
    """Outputs and gradients of a function, given its outputs' gradients; `learns`: which inputs require a gradient."""
    leaves = [x.to(dtype, copy=True).requires_grad_(learn) for x, learn in zip(inputs, learns, strict=True)]
    outs = function(*leaves)
    sum((out.double() * grad).sum() for out, grad in zip(outs, grads, strict=True)).backward()
    return [out.detach() for out in outs], [leaf.grad for leaf in leaves]


def assert_same(function, exact, inputs, grads, learns, share: float) -> None:
    """Values and gradients agree with those of `exact` in float64, up to a share of their norm."""
    found = [gradients(f, inputs, grads, learns, t) for f, t in ((function, torch.bfloat16), (exact, torch.float64))]
    for ours, others in zip(*found, strict=True):
        for one, other in zip(ours, others, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                assert one.dtype == torch.bfloat16
                assert one.shape == other.shape
                assert (one.double() - other).norm() <= share * other.norm()

"""The CPU's kernel for products of bfloat16 matrices, and one linear layer, against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from minimind.native import ops, products
from tests.unit.native.products_support import SHAPES, assert_product, numbers, spaced

pytestmark = pytest.mark.usefixtures("cpu_kernels", "kernel_calls")


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("transposed", ["", "a", "b", "ab"])
@pytest.mark.parametrize("shape", SHAPES)
def test_product(shape, transposed, gaps, kernel_calls):
    rows, columns, depth = shape
    by_kernel = rows >= 32 and transposed != "ab" and (depth % 2 == 0 or transposed == "a")
    a, b = numbers(rows, depth), numbers(depth, columns, seed=1)
    given = [x.t().contiguous() if name in transposed else x for x, name in ((a, "a"), (b, "b"))]
    # With AMX, torch 2.13 multiplies the element after a row of odd depth by 0, so a NaN there would reach the row.
    given = [spaced(x, torch.nan if by_kernel else 1.0) if gaps else x for x in given]
    given = [x.t() if name in transposed else x for x, name in zip(given, "ab", strict=True)]
    assert_product(products.matmul(*given), a, b)
    out = spaced(torch.full((rows, columns), torch.nan).to(torch.bfloat16))
    around = out._base.clone()
    assert products.matmul(*given, out=out) is out
    assert_product(out, a, b)
    # A matrix of one column is both row-major and column-major.
    assert columns == 1 or len(kernel_calls) == (2 if by_kernel else 0)
    # Nothing around `out` was written.
    around[1:-1, 2 : 2 + columns] = out
    torch.testing.assert_close(out._base, around, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_nonfinite_element_reaches_its_row_and_column_only(number):
    a, b = numbers(200, 96), numbers(96, 150, seed=1)
    a[77, 13] = number
    finite = products.matmul(a, b).isfinite()
    assert not finite[77].any()
    assert finite[:77].all()
    assert finite[78:].all()
    b[5, 149] = number
    assert products.matmul(a, b)[:77].isfinite().all(0).tolist() == [True] * 149 + [False]


def test_a_product_is_reproducible_with_any_number_of_threads():
    """Which thread computes a block varies; the order of each sum does not."""
    a, b = numbers(300, 160), numbers(160, 200, seed=1)
    for left in (a, a.t().contiguous().t()):
        first = products.matmul(left, b)
        for threads in (1, 2, 3):
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                assert torch.equal(products.matmul(left, b), first)
            finally:
                torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_other_dtypes_are_torchs(dtype):
    a, b = numbers(64, 32).to(dtype), numbers(32, 48, seed=1).to(dtype)
    assert torch.equal(ops.matmul(a, b), a @ b)
    out = torch.empty(64, 48, dtype=dtype)
    assert torch.equal(ops.matmul(a, b, out=out), a @ b)


def test_mismatched_matrices_raise_torchs_errors():
    a, b = numbers(64, 64), numbers(32, 64)
    for given in ((a, b), (a, b.t()[:32]), (a[0], b), (a, b[0])):
        with pytest.raises(RuntimeError):
            ops.matmul(*given)
    with pytest.raises(RuntimeError, match="dtype"):
        ops.matmul(a, a, out=torch.empty(64, 64))
    with pytest.raises(RuntimeError):
        ops.linear(a, numbers(50, 128))


def test_the_result_may_be_column_major():
    a, b = numbers(64, 32), numbers(32, 48, seed=1)
    out = torch.empty(48, 64, dtype=torch.bfloat16).t()
    assert_product(products.matmul(a, b, out=out), a, b)
    assert_product(out, a, b)


@pytest.mark.parametrize("shape", [(0, 4, 6), (40, 0, 6), (40, 4, 0)])
def test_empty_matrices(shape):
    rows, columns, depth = shape
    out = products.matmul(numbers(rows, depth), numbers(depth, columns))
    assert torch.equal(out, torch.zeros(rows, columns, dtype=torch.bfloat16))


@pytest.mark.parametrize("shape", [(1, 70, 34), (2, 35, 34), (70, 34), (3, 34), (0, 34), (2, 0, 34)])
@pytest.mark.parametrize("learns", ["x", "weight", "both"])
def test_linear(shape, learns, kernel_calls):
    grad, found = numbers(*shape[:-1], 50, seed=2), []
    for function, dtype in ((products.linear, torch.bfloat16), (F.linear, torch.float64)):
        x, weight = (numbers(*size, seed=seed).to(dtype) for seed, size in enumerate((shape, (50, 34))))
        x.requires_grad_(learns != "weight")
        weight.requires_grad_(learns != "x")
        out = function(x, weight)
        out.backward(grad.to(dtype))
        found.append((out.detach(), x.grad, weight.grad))
    for ours, exact in zip(*found, strict=True):
        assert (ours is None) == (exact is None)
        if ours is not None:
            assert ours.shape == exact.shape
            torch.testing.assert_close(ours.double(), exact, rtol=2**-8, atol=1e-5)
    # The weight's gradient has 50 rows, enough for the kernel, however many x has.
    several = out.numel() // 50 >= 32
    assert len(kernel_calls) == several * (1 + (learns != "weight")) + (learns != "x" and out.numel() > 0)

"""The CPU's kernel for products of bfloat16 matrices, and layers that are made of it, against float64."""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest
import torch
import torch.nn.functional as F

from minimind.native import functions, ops, products
from minimind.native.library import compiled_kernels

pytestmark = pytest.mark.usefixtures("cpu_kernels")

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


@pytest.fixture(autouse=True)
def kernel_calls(monkeypatch) -> list[str]:
    """The kernel's calls. It is enabled also on processors where it is not the fastest way and would not be used."""
    calls: list[str] = []
    call = products.call

    def counted(name, *arguments):
        if name == "matmul":
            calls.append(name)
        return call(name, *arguments)

    monkeypatch.setattr(products, "call", counted)
    monkeypatch.setattr(products, "_suits_processor", lambda: True)
    return calls


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def spaced(matrix: torch.Tensor) -> torch.Tensor:
    """The same numbers as a view with NaN between its rows, before and after them."""
    rows, columns = matrix.shape
    wide = torch.full((rows + 2, columns + 6), torch.nan, dtype=matrix.dtype)
    view = wide[1:-1, 2 : 2 + columns]
    view.copy_(matrix)
    return view


def assert_product(ours: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Every element is the exact sum, up to roundings of a float32 sum and one rounding to bfloat16."""
    a, b = a.double(), b.double()
    allowed = (a @ b).abs() * 2**-8 + (a.abs() @ b.abs()) * 1e-6
    assert ours.dtype == torch.bfloat16
    assert ((ours.double() - a @ b).abs() <= allowed).all()


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("transposed", ["", "a", "b", "ab"])
@pytest.mark.parametrize("shape", SHAPES)
def test_product(shape, transposed, gaps, kernel_calls):
    rows, columns, depth = shape
    by_kernel = rows >= 32 and transposed != "ab" and (depth % 2 == 0 or transposed == "a")
    a, b = numbers(rows, depth), numbers(depth, columns, seed=1)
    given = [x.t().contiguous() if name in transposed else x for x, name in ((a, "a"), (b, "b"))]
    given = [spaced(x) if gaps else x for x in given]
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


@pytest.mark.parametrize("learns", [(1, 1, 1, 1), (0, 1, 0, 1), (1, 0, 0, 0)])
@pytest.mark.parametrize("shape", [(70,), (1, 101), (2, 3), (0,)])
@pytest.mark.parametrize("widths", [(64, 32, 32), (70, 2, 130)])
def test_linears_of_one_x(widths, shape, learns, kernel_calls):
    inputs = [numbers(*shape, 34), *(numbers(width, 34, seed=width) for width in widths)]
    grads = [numbers(*shape, width, seed=1 + width) for width in widths]

    def exact(x, *weights):
        return [F.linear(x, weight) for weight in weights]

    assert_same(products.linears, exact, inputs, grads, list(map(bool, learns)), 2**-8)
    if numbers(*shape).numel() >= 64 and min(widths) >= 32:
        # One call for all outputs, one for x's gradient, one for the gradients of all weights.
        assert len(kernel_calls) == 1 + learns[0] + any(learns[1:])


def test_output_gradients_of_linears_may_be_transposed_differently():
    x, first, second = numbers(64, 34).requires_grad_(), numbers(50, 34, seed=1), numbers(50, 34, seed=2)
    grads = numbers(64, 50, seed=3), numbers(50, 64, seed=4).t()
    torch.autograd.backward(products.linears(x, first, second), grads)
    exact = grads[0].double() @ first.double() + grads[1].double() @ second.double()
    torch.testing.assert_close(x.grad.double(), exact, rtol=2**-6, atol=0.1)


def test_weights_and_gradients_of_linears_may_overlap_in_memory():
    """Two different matrices may start at the same address: they must not be taken for one."""
    x, weight, grad = numbers(64, 64).requires_grad_(), numbers(96, 64, seed=1), numbers(64, 96, seed=2)
    first, second = weight[:32].clone().requires_grad_(), weight.clone().requires_grad_()
    for ours, its in zip(products.linears(x, weight[:32], weight), (weight[:32], weight), strict=True):
        assert_product(ours.detach(), x.detach(), its.t())
    torch.autograd.backward(products.linears(x, first, second), (grad[:, :32], grad))
    assert_product(first.grad, grad[:, :32].t(), x.detach())
    assert_product(second.grad, grad.t(), x.detach())


def test_an_unused_output_of_linears_gives_its_weight_a_zero_gradient():
    x, first, second = numbers(40, 34).requires_grad_(), *(numbers(50, 34, seed=s).requires_grad_() for s in (1, 2))
    products.linears(x, first, second)[0].sum().backward()
    assert first.grad.any()
    assert not second.grad.any()


@pytest.mark.parametrize("shape", [(70,), (2, 150), (3,)])
def test_linear_with_residual(shape):
    inputs = [numbers(*shape, 34), numbers(70, 34, seed=1), numbers(*shape, 70, seed=2)]
    grads = [numbers(*shape, 70, seed=3)]
    assert_same(
        lambda *given: [products.linear(*given)],
        lambda x, weight, residual: [F.linear(x, weight) + residual],
        inputs, grads, [True] * 3, 2**-8,
    )  # fmt: skip
    # A residual with gaps between its rows, and a column-major one.
    x, weight, residual = inputs
    for other in (
        spaced(residual.flatten(0, -2)).view_as(residual),
        residual.transpose(0, -1).contiguous().transpose(0, -1),
    ):
        assert torch.equal(products.linear(x, weight, other), products.linear(x, weight, residual))
    with pytest.raises(AssertionError):
        products.linear(x, weight, residual[..., :-1])


@pytest.mark.parametrize("suits", [True, False])
def test_a_fused_residual_has_the_bits_of_a_separate_sum(suits, monkeypatch):
    """A policy whose layers are called one by one and its reference must start with a margin of exactly 0."""
    monkeypatch.setattr(products, "_suits_processor", lambda: suits)
    x, weight, residual = numbers(101, 34), numbers(70, 34, seed=1), numbers(101, 70, seed=2)
    assert torch.equal(products.linear(x, weight, residual), products.linear(x, weight) + residual)


@pytest.mark.parametrize("suits", [True, False])
@pytest.mark.parametrize("learns", [(1, 1, 1, 1, 1), (1, 0, 1, 0, 0), (0, 0, 0, 1, 1), (0, 1, 0, 0, 0)])
@pytest.mark.parametrize(("shape", "inner"), [((70,), 64), ((2, 51), 70), ((40,), 2), ((3,), 64), ((0,), 64)])
def test_feed_forward(shape, inner, learns, suits, monkeypatch):
    monkeypatch.setattr(products, "_suits_processor", lambda: suits)
    sizes = [(*shape, 34), (inner, 34), (inner, 34), (34, inner), (*shape, 34)]
    inputs = [numbers(*size, seed=seed) for seed, size in enumerate(sizes)]

    def exact(x, gate, up, down, residual):
        return [F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down) + residual]

    def ours(*given):
        return [products.feed_forward(*given)]

    # A gradient of gate or up has been rounded four times.
    assert_same(ours, exact, inputs, [numbers(*shape, 34, seed=9)], list(map(bool, learns)), 2**-7)


def test_feed_forward_has_the_bits_of_separate_layers():
    """Both factors are rounded before they are multiplied, as the outputs of separate layers are."""
    x, gate, up, down, residual = (
        numbers(*s, seed=i) for i, s in enumerate([(70, 34), (50, 34), (50, 34), (34, 50), (70, 34)])
    )
    inner = functions.swiglu(products.linear(x, gate), products.linear(x, up))
    assert torch.equal(products.feed_forward(x, gate, up, down, residual), products.linear(inner, down) + residual)


def test_feed_forward_of_column_major_weights():
    x, gate, up, down = numbers(64, 34), numbers(34, 50).t(), numbers(34, 50, seed=1).t(), numbers(34, 50, seed=2)
    ours = products.feed_forward(x, gate, up, down, torch.zeros_like(x))
    row_major = products.feed_forward(x, gate.contiguous(), up.contiguous(), down, torch.zeros_like(x))
    torch.testing.assert_close(ours, row_major, rtol=2**-7, atol=1e-2)


def test_feed_forward_saves_x_and_two_factors():
    x, gate, up, down = numbers(40, 34), numbers(50, 34), numbers(50, 34), numbers(34, 50)
    out = products.feed_forward(x, gate, up, down, x)
    assert out.grad_fn is None
    gate.requires_grad_()
    saved = products.feed_forward(x, gate, up, down, x).grad_fn.saved_tensors
    assert [tuple(tensor.shape) for tensor in saved] == [(40, 34), (40, 50), (40, 50), (50, 34), (50, 34), (34, 50)]


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_feed_forward_of_a_nonfinite_row_is_nonfinite_there_only(number):
    x, gate, up, down = numbers(100, 34), numbers(50, 34), numbers(50, 34), numbers(34, 50)
    x[60, 3] = number
    finite = products.feed_forward(x, gate, up, down, torch.zeros_like(x)).isfinite().all(1)
    assert finite.tolist() == [row != 60 for row in range(100)]


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_linear_saves_nothing_for_a_gradient_that_is_not_needed(frozen):
    x, weight = numbers(40, 34), numbers(50, 34, seed=1)
    (weight if frozen == "x" else x).requires_grad_()
    saved = products.linear(x, weight).grad_fn.saved_tensors
    assert [tensor is None for tensor in saved] == [frozen == "weight", frozen == "x"]


def test_linear_of_a_transposed_tensor_and_a_gradient_without_strides():
    """The gradient of `sum()` is one number, expanded: all its strides are 0."""
    x, weight = numbers(20, 40, 2).transpose(0, 1).requires_grad_(), numbers(24, 2, seed=1).requires_grad_()
    out = products.linear(x, weight)
    assert_product(out.detach().flatten(0, 1), x.detach().reshape(-1, 2), weight.detach().t())
    out.sum().backward()
    torch.testing.assert_close(x.grad.float(), weight.detach().float().sum(0).expand(40, 20, 2), rtol=2**-7, atol=1e-5)
    exact = x.detach().float().sum((0, 1)).expand(24, 2)
    torch.testing.assert_close(weight.grad.float(), exact, rtol=2**-7, atol=1e-4)


def test_the_kernel_is_used_on_processors_with_bf16_vectors_and_no_matrix_units():
    loaded, compiler = compiled_kernels(), shlex.split(os.environ.get("CXX", "c++"))
    assert loaded is not None
    macros = subprocess.run(
        [*compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, text=True, check=True
    ).stdout
    assert loaded.matmul_suits_processor() == ("__AVX512BF16__" in macros and "__AMX_BF16__" not in macros)

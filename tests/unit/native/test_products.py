"""The CPU's products of bfloat16 matrices against float64."""

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

# Rows, columns, depth: less than a tile, a block, a panel, a vector or a depth block, and some more than whole ones. In
# the last one rows are too few to be worth it, and torch multiplies.
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
def by_kernel(monkeypatch) -> list[str]:
    """How often the kernel was called. It is right also on processors where it is not the fastest, and left alone."""
    calls: list[str] = []
    call = products.call

    def counted(name, *arguments):
        if name == "matmul":
            calls.append(name)
        return call(name, *arguments)

    monkeypatch.setattr(products, "call", counted)
    monkeypatch.setattr(products, "_made_for_this_processor", lambda: True)
    return calls


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def spread(matrix: torch.Tensor) -> torch.Tensor:
    """The same numbers in rows that lie apart, NaN between them, before and after."""
    rows, columns = matrix.shape
    wide = torch.full((rows + 2, columns + 6), torch.nan, dtype=matrix.dtype)
    view = wide[1:-1, 2 : 2 + columns]
    view.copy_(matrix)
    return view


def assert_product(ours: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Every element is the exact sum but for float32's and one rounding to bfloat16."""
    a, b = a.double(), b.double()
    allowed = (a @ b).abs() * 2**-8 + (a.abs() @ b.abs()) * 1e-6
    assert ours.dtype == torch.bfloat16
    assert ((ours.double() - a @ b).abs() <= allowed).all()


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("turned", ["", "a", "b", "ab"])
@pytest.mark.parametrize("shape", SHAPES)
def test_product(shape, turned, apart, by_kernel):
    rows, columns, depth = shape
    taken = rows >= 32 and turned != "ab" and (depth % 2 == 0 or turned == "a")
    a, b = numbers(rows, depth), numbers(depth, columns, seed=1)
    given = [x.t().contiguous() if name in turned else x for x, name in ((a, "a"), (b, "b"))]
    given = [spread(x) if apart else x for x in given]
    given = [x.t() if name in turned else x for x, name in zip(given, "ab", strict=True)]
    assert_product(products.matmul(*given), a, b)
    out = spread(torch.full((rows, columns), torch.nan).to(torch.bfloat16))
    around = out._base.clone()
    assert products.matmul(*given, out=out) is out
    assert_product(out, a, b)
    # A matrix of one column lies in both ways.
    assert columns == 1 or len(by_kernel) == (2 if taken else 0)
    # Nothing beside it was written.
    around[1:-1, 2 : 2 + columns] = out
    torch.testing.assert_close(out._base, around, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_what_is_not_finite_reaches_its_row_and_column_only(number):
    a, b = numbers(200, 96), numbers(96, 150, seed=1)
    a[77, 13] = number
    finite = products.matmul(a, b).isfinite()
    assert not finite[77].any()
    assert finite[:77].all()
    assert finite[78:].all()
    b[5, 149] = number
    assert products.matmul(a, b)[:77].isfinite().all(0).tolist() == [True] * 149 + [False]


def test_the_same_product_is_the_same_to_the_bit():
    """Blocks go to whichever thread is free; what is summed in which order does not depend on it."""
    a, b = numbers(700, 640), numbers(640, 300, seed=1)
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
def test_other_dtypes_are_torch_s(dtype):
    a, b = numbers(64, 32).to(dtype), numbers(32, 48, seed=1).to(dtype)
    assert torch.equal(ops.matmul(a, b), a @ b)
    out = torch.empty(64, 48, dtype=dtype)
    assert torch.equal(ops.matmul(a, b, out=out), a @ b)


def test_matrices_that_do_not_go_together_are_refused_as_by_torch():
    a, b = numbers(64, 64), numbers(32, 64)
    for given in ((a, b), (a, b.t()[:32]), (a[0], b), (a, b[0])):
        with pytest.raises(RuntimeError):
            ops.matmul(*given)
    with pytest.raises(RuntimeError, match="dtype"):
        ops.matmul(a, a, out=torch.empty(64, 64))
    with pytest.raises(RuntimeError):
        ops.linear(a, numbers(50, 128))


def test_the_result_may_lie_in_any_way():
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
def test_linear(shape, learns, by_kernel):
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
    # A weight's gradient has enough rows whatever x has.
    several = out.numel() // 50 >= 32
    assert len(by_kernel) == several * (1 + (learns != "weight")) + (learns != "x" and out.numel() > 0)


def gradients(function, inputs, grads, learns, dtype):
    """Outputs and gradients of a function of some inputs, those that learn, given its outputs' gradients."""
    leaves = [x.to(dtype, copy=True).requires_grad_(learn) for x, learn in zip(inputs, learns, strict=True)]
    outs = function(*leaves)
    sum((out.double() * grad).sum() for out, grad in zip(outs, grads, strict=True)).backward()
    return [out.detach() for out in outs], [leaf.grad for leaf in leaves]


def assert_same(function, exact, inputs, grads, learns, share: float) -> None:
    """Values and gradients as those of `exact` in float64, but for a share of their mean."""
    found = [gradients(f, inputs, grads, learns, t) for f, t in ((function, torch.bfloat16), (exact, torch.float64))]
    for ours, others in zip(*found, strict=True):
        for one, other in zip(ours, others, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                assert one.dtype == torch.bfloat16
                assert one.shape == other.shape
                assert (one.double() - other).norm() <= share * other.norm()


@pytest.mark.parametrize("learns", [(1, 1, 1, 1), (0, 1, 0, 1), (1, 0, 0, 0)])
@pytest.mark.parametrize("shape", [(70,), (1, 301), (2, 3), (0,)])
@pytest.mark.parametrize("widths", [(64, 32, 32), (70, 2, 130)])
def test_linears_of_one_x(widths, shape, learns, by_kernel):
    inputs = [numbers(*shape, 34), *(numbers(width, 34, seed=width) for width in widths)]
    grads = [numbers(*shape, width, seed=1 + width) for width in widths]

    def exact(x, *weights):
        return [F.linear(x, weight) for weight in weights]

    assert_same(products.linears, exact, inputs, grads, list(map(bool, learns)), 2**-8)
    if numbers(*shape).numel() >= 64 and min(widths) >= 32:
        # One call for all outputs, one for x's gradient, one for all weights'.
        assert len(by_kernel) == 1 + learns[0] + any(learns[1:])


def test_gradients_of_linears_may_lie_in_different_ways():
    x, first, second = numbers(64, 34).requires_grad_(), numbers(50, 34, seed=1), numbers(50, 34, seed=2)
    grads = numbers(64, 50, seed=3), numbers(50, 64, seed=4).t()
    torch.autograd.backward(products.linears(x, first, second), grads)
    exact = grads[0].double() @ first.double() + grads[1].double() @ second.double()
    torch.testing.assert_close(x.grad.double(), exact, rtol=2**-6, atol=0.1)


def test_weights_and_gradients_of_linears_may_begin_at_the_same_place():
    """Where a matrix begins does not tell which one it is."""
    x, weight, grad = numbers(64, 64).requires_grad_(), numbers(96, 64, seed=1), numbers(64, 96, seed=2)
    first, second = weight[:32].clone().requires_grad_(), weight.clone().requires_grad_()
    for ours, its in zip(products.linears(x, weight[:32], weight), (weight[:32], weight), strict=True):
        assert_product(ours.detach(), x.detach(), its.t())
    torch.autograd.backward(products.linears(x, first, second), (grad[:, :32], grad))
    assert_product(first.grad, grad[:, :32].t(), x.detach())
    assert_product(second.grad, grad.t(), x.detach())


def test_what_nobody_uses_of_linears_has_no_gradient():
    x, first, second = numbers(40, 34).requires_grad_(), *(numbers(50, 34, seed=s).requires_grad_() for s in (1, 2))
    products.linears(x, first, second)[0].sum().backward()
    assert first.grad.any()
    assert not second.grad.any()


@pytest.mark.parametrize("shape", [(70,), (2, 150), (3,)])
def test_linear_and_what_is_added(shape):
    inputs = [numbers(*shape, 34), numbers(70, 34, seed=1), numbers(*shape, 70, seed=2)]
    grads = [numbers(*shape, 70, seed=3)]
    assert_same(
        lambda *given: [products.linear(*given)],
        lambda x, weight, added: [F.linear(x, weight) + added],
        inputs, grads, [True] * 3, 2**-8,
    )  # fmt: skip
    # Rows that lie apart, or along the other way.
    x, weight, added = inputs
    for other in (spread(added.flatten(0, -2)).view_as(added), added.transpose(0, -1).contiguous().transpose(0, -1)):
        assert torch.equal(products.linear(x, weight, other), products.linear(x, weight, added))
    with pytest.raises(AssertionError):
        products.linear(x, weight, added[..., :-1])


@pytest.mark.parametrize("made", [True, False])
def test_what_is_added_at_once_is_what_is_added_afterwards(made, monkeypatch):
    """To the bit: a policy whose layers are called one by one and its reference start with a margin of 0."""
    monkeypatch.setattr(products, "_made_for_this_processor", lambda: made)
    x, weight, added = numbers(301, 34), numbers(70, 34, seed=1), numbers(301, 70, seed=2)
    assert torch.equal(products.linear(x, weight, added), products.linear(x, weight) + added)


@pytest.mark.parametrize("made", [True, False])
@pytest.mark.parametrize("learns", [(1, 1, 1, 1, 1), (1, 0, 1, 0, 0), (0, 0, 0, 1, 1), (0, 1, 0, 0, 0)])
@pytest.mark.parametrize(("shape", "inner"), [((70,), 64), ((2, 151), 70), ((40,), 2), ((3,), 64), ((0,), 64)])
def test_feed_forward(shape, inner, learns, made, monkeypatch):
    monkeypatch.setattr(products, "_made_for_this_processor", lambda: made)
    sizes = [(*shape, 34), (inner, 34), (inner, 34), (34, inner), (*shape, 34)]
    inputs = [numbers(*size, seed=seed) for seed, size in enumerate(sizes)]

    def exact(x, gate, up, down, added):
        return [F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down) + added]

    def ours(*given):
        return [products.feed_forward(*given)]

    # Four roundings on the way to a gradient of the first weights.
    assert_same(ours, exact, inputs, [numbers(*shape, 34, seed=9)], list(map(bool, learns)), 2**-7)


def test_feed_forward_is_made_of_factors_that_are_rounded():
    """As by separate layers, to the bit."""
    x, gate, up, down, added = (
        numbers(*s, seed=i) for i, s in enumerate([(70, 34), (50, 34), (50, 34), (34, 50), (70, 34)])
    )
    inner = functions.swiglu(products.linear(x, gate), products.linear(x, up))
    assert torch.equal(products.feed_forward(x, gate, up, down, added), products.linear(inner, down) + added)


def test_feed_forward_of_weights_that_lie_the_other_way():
    x, gate, up, down = numbers(64, 34), numbers(34, 50).t(), numbers(34, 50, seed=1).t(), numbers(34, 50, seed=2)
    ours = products.feed_forward(x, gate, up, down, torch.zeros_like(x))
    lying = products.feed_forward(x, gate.contiguous(), up.contiguous(), down, torch.zeros_like(x))
    torch.testing.assert_close(ours, lying, rtol=2**-7, atol=1e-2)


def test_feed_forward_keeps_x_and_two_factors():
    x, gate, up, down = numbers(40, 34), numbers(50, 34), numbers(50, 34), numbers(34, 50)
    out = products.feed_forward(x, gate, up, down, x)
    assert out.grad_fn is None
    gate.requires_grad_()
    kept = products.feed_forward(x, gate, up, down, x).grad_fn.saved_tensors
    assert [tuple(tensor.shape) for tensor in kept] == [(40, 34), (40, 50), (40, 50), (50, 34), (50, 34), (34, 50)]


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_feed_forward_hides_nothing(number):
    x, gate, up, down = numbers(100, 34), numbers(50, 34), numbers(50, 34), numbers(34, 50)
    x[60, 3] = number
    finite = products.feed_forward(x, gate, up, down, torch.zeros_like(x)).isfinite().all(1)
    assert finite.tolist() == [row != 60 for row in range(100)]


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_linear_keeps_nothing_for_a_gradient_that_nobody_asks_for(frozen):
    x, weight = numbers(40, 34), numbers(50, 34, seed=1)
    (weight if frozen == "x" else x).requires_grad_()
    kept = products.linear(x, weight).grad_fn.saved_tensors
    assert [tensor is None for tensor in kept] == [frozen == "weight", frozen == "x"]


def test_linear_of_what_is_not_contiguous_and_the_gradient_of_a_sum():
    """`sum()` hands back one number for all: a gradient without strides."""
    x, weight = numbers(20, 40, 2).transpose(0, 1).requires_grad_(), numbers(24, 2, seed=1).requires_grad_()
    out = products.linear(x, weight)
    assert_product(out.detach().flatten(0, 1), x.detach().reshape(-1, 2), weight.detach().t())
    out.sum().backward()
    torch.testing.assert_close(x.grad.float(), weight.detach().float().sum(0).expand(40, 20, 2), rtol=2**-7, atol=1e-5)
    exact = x.detach().float().sum((0, 1)).expand(24, 2)
    torch.testing.assert_close(weight.grad.float(), exact, rtol=2**-7, atol=1e-4)


def test_the_kernel_is_for_processors_with_vectors_of_bf16_and_no_matrix_units():
    loaded, compiler = compiled_kernels(), shlex.split(os.environ.get("CXX", "c++"))
    assert loaded is not None
    macros = subprocess.run(
        [*compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, text=True, check=True
    ).stdout
    assert loaded.made_for_matmul() == ("__AVX512BF16__" in macros and "__AMX_BF16__" not in macros)

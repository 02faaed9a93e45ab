"""Layers that share one kernel call: several linears of one input, residuals, feed-forward, against float64."""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest
import torch
import torch.nn.functional as F

from minimind.native import functions, products
from minimind.native.library import compiled_kernels
from minimind.native.processor import Products, compiler_flags
from tests.unit.native.products_support import assert_product, assert_same, numbers, spaced

pytestmark = pytest.mark.usefixtures("cpu_kernels", "kernel_calls")


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


@pytest.mark.parametrize("fastest", Products)
def test_a_fused_residual_has_the_bits_of_a_separate_sum(fastest, monkeypatch):
    """A policy whose layers are called one by one and its reference must start with a margin of exactly 0."""
    monkeypatch.setattr(products, "_fastest", lambda: fastest)
    x, weight, residual = numbers(101, 34), numbers(70, 34, seed=1), numbers(101, 70, seed=2)
    assert torch.equal(products.linear(x, weight, residual), products.linear(x, weight) + residual)


@pytest.mark.parametrize("fastest", Products)
@pytest.mark.parametrize("learns", [(1, 1, 1, 1, 1), (1, 0, 1, 0, 0), (0, 0, 0, 1, 1), (0, 1, 0, 0, 0)])
@pytest.mark.parametrize(("shape", "inner"), [((70,), 64), ((2, 51), 70), ((40,), 2), ((3,), 64), ((0,), 64)])
def test_feed_forward(shape, inner, learns, fastest, monkeypatch):
    monkeypatch.setattr(products, "_fastest", lambda: fastest)
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
        [*compiler, *compiler_flags(), "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, text=True, check=True
    ).stdout
    units = "__AMX_BF16__" in macros or "__ARM_FEATURE_BF16_VECTOR_ARITHMETIC" in macros
    expected = Products.TORCH if units else Products.KERNEL if "__AVX512BF16__" in macros else Products.FLOAT32
    assert Products(loaded.bfloat16_products()) is expected


def test_sums_of_products_in_float32_are_rounded_once(monkeypatch):
    """Twice 0.375 of the step between 1 and the next number of bfloat16: alone it is lost, together it is not."""
    monkeypatch.setattr(products, "_fastest", lambda: Products.FLOAT32)
    right = torch.tensor([[1.0], [0.375 * 2**-7]], dtype=torch.bfloat16)
    both, second = (torch.tensor([row] * 40, dtype=torch.bfloat16) for row in ([1.0, 1.0], [0.0, 1.0]))
    out = torch.empty(40, 1, dtype=torch.bfloat16)
    products._multiply_any([products.Product(both, right, out), products.Product(second, right, out)])
    assert torch.equal(out, torch.full_like(out, 1 + 2**-7))  # 1 + 0.75 steps
    products._multiply_any([products.Product(both, right, out)])
    assert torch.equal(out, torch.ones_like(out))  # 1 + 0.375 steps


def test_without_bfloat16_instructions_no_product_is_torch_s_own(monkeypatch):
    monkeypatch.setattr(products, "_fastest", lambda: Products.FLOAT32)
    dtypes = []
    multiply = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, **given: (dtypes.append(a.dtype), multiply(a, b, **given))[1])
    x, weights = numbers(70, 34).requires_grad_(), [numbers(24, 34, seed=seed).requires_grad_() for seed in (1, 2)]
    one, other = products.linears(x, *weights)
    (one.float().sum() + other.float().sum()).backward()
    products.matmul(x.detach(), weights[0].detach().t())
    assert set(dtypes) == {torch.float32}

"""Products of groups of rows against autograd, torch's grouped product against ours, and the conditions for its use."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minimind.model import grouped_linear as module
from minimind.model.grouped_linear import Groups, grouped_linear

CPU = torch.device("cpu")
needs_grouped_mm = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no grouped_mm")
SIZES = {
    "every group": [3, 5, 1, 7],
    "empty at both ends and between": [0, 6, 0, 9, 0],
    "all in one": [0, 0, 16, 0],
    "one group": [5],
}


def groups_of(sizes: list[int]) -> Groups:
    return Groups(torch.tensor(sizes).cumsum(0).to(torch.int32))


def tensors(sizes: list[int], width: int, out: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, matrices and the output's gradient."""
    generator = torch.Generator().manual_seed(7)
    shapes = ((sum(sizes), width), (len(sizes), out, width), (sum(sizes), out))
    x, weight, grad = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return x.requires_grad_(), weight.requires_grad_(), grad


def results(product, x: Tensor, weight: Tensor, grad: Tensor) -> list[Tensor]:
    """Output, gradient of the rows, gradient of the weights."""
    out = product(x, weight)
    return [out, *torch.autograd.grad(out, (x, weight), grad)]


def by_autograd(sizes: list[int], x: Tensor, weight: Tensor) -> Tensor:
    return torch.cat([F.linear(rows, matrix) for rows, matrix in zip(x.split(sizes), weight, strict=True)])


@pytest.fixture
def grouped_on_a_cpu(monkeypatch):
    """Enables torch's grouped product on a CPU and records the shapes of its operands."""
    taken = []
    product = F.grouped_mm

    def counted(one: Tensor, other: Tensor, **kwargs) -> Tensor:
        taken.append((tuple(one.shape), tuple(other.shape)))
        return product(one, other, **kwargs)

    monkeypatch.setattr(F, "grouped_mm", counted)
    monkeypatch.setattr(module, "grouped_product_works", lambda device: True)
    return taken


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_per_group_equal_autograd(name, dtype):
    sizes = SIZES[name]
    x, weight, grad = tensors(sizes, 24, 10, dtype)
    found = results(lambda x, weight: grouped_linear(x, weight, groups_of(sizes)), x, weight, grad)
    expected = results(lambda x, weight: by_autograd(sizes, x, weight), x, weight, grad)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, rtol=1e-6 if dtype == torch.float32 else 0, atol=0)
    for size, gradient in zip(sizes, found[2], strict=True):
        assert size or torch.equal(gradient, torch.zeros_like(gradient)), "an empty group's gradient is zero"


def test_gradients_equal_finite_differences():
    x, weight, _ = tensors([2, 0, 3], 4, 5, torch.float64)
    assert torch.autograd.gradcheck(lambda x, weight: grouped_linear(x, weight, groups_of([2, 0, 3])), (x, weight))


@needs_grouped_mm
@pytest.mark.parametrize("name", SIZES)
def test_grouped_product_of_torch_gives_the_same_results(name, grouped_on_a_cpu):
    sizes = SIZES[name]
    x, weight, grad = tensors(sizes, 24, 16, torch.bfloat16)
    found = results(lambda x, weight: grouped_linear(x, weight, groups_of(sizes)), x, weight, grad)
    total, count = sum(sizes), len(sizes)
    assert grouped_on_a_cpu == [
        ((total, 24), (count, 24, 16)),
        ((total, 16), (count, 16, 24)),
        ((16, total), (total, 24)),
    ]
    expected = results(lambda x, weight: by_autograd(sizes, x, weight), x, weight, grad)
    for one, other in zip(found, expected, strict=True):
        # Sums of at most 24 products, rounded to 8 bits once.
        torch.testing.assert_close(one, other, rtol=2**-7, atol=1e-6)
    for size, gradient in zip(sizes, found[2], strict=True):
        assert size or torch.equal(gradient, torch.zeros_like(gradient)), "an empty group's gradient is zero"


@needs_grouped_mm
@pytest.mark.parametrize(
    ("width", "out", "dtype"), [(12, 16, torch.bfloat16), (16, 12, torch.bfloat16), (16, 16, torch.float32)]
)
def test_unsupported_sizes_and_dtypes_use_products_per_group(width, out, dtype, grouped_on_a_cpu):
    x, weight, grad = tensors([3, 0, 4], width, out, dtype)
    found = results(lambda x, weight: grouped_linear(x, weight, groups_of([3, 0, 4])), x, weight, grad)
    expected = results(lambda x, weight: by_autograd([3, 0, 4], x, weight), x, weight, grad)
    assert grouped_on_a_cpu == []
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


@needs_grouped_mm
def test_unaligned_weight_uses_products_per_group(grouped_on_a_cpu):
    x, weight, grad = tensors([3, 4], 16, 8, torch.bfloat16)
    buffer = torch.zeros(weight.numel() + 1, dtype=torch.bfloat16)
    misplaced = buffer[1:].view_as(weight).copy_(weight).detach().requires_grad_()
    groups = groups_of([3, 4])
    found = results(lambda x, weight: grouped_linear(x, weight, groups), x, misplaced, grad)
    assert grouped_on_a_cpu == []
    expected = results(lambda x, weight: grouped_linear(x, weight, groups), x, weight, grad)
    assert len(grouped_on_a_cpu) == 3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2**-7, atol=1e-6)


def test_backward_reads_the_current_data_of_the_weight():
    """ZeRO-3 frees a weight after the forward and gathers it again before the backward. A saved view would be stale."""
    x, weight, grad = tensors([3, 4], 6, 5, torch.float32)
    weight = torch.nn.Parameter(weight.detach())
    whole = weight.data
    out = grouped_linear(x, weight, groups_of([3, 4]))
    weight.data = torch.empty(0)
    weight.data = 2 * whole
    (grad_x,) = torch.autograd.grad(out, x, grad)
    torch.testing.assert_close(grad_x, torch.cat((grad[:3] @ whole[0], grad[3:] @ whole[1])) * 2)


def test_autocast_casts_as_in_a_linear_layer():
    x, weight, _ = tensors([3, 4], 8, 8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = grouped_linear(x, weight, groups_of([3, 4]))
        expected = by_autograd([3, 4], x, weight)
    assert out.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    for gradient in torch.autograd.grad(out.sum(), (x, weight)):
        assert gradient.dtype == torch.float32


def test_cpu_uses_products_per_group_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not module.grouped_product_works.__wrapped__(CPU)


# Runs the check on a CPU as if it were a GPU of the given compute capability.
@pytest.fixture
def capability(monkeypatch):
    def is_now(major: int, minor: int = 0) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))

    return is_now


@needs_grouped_mm
def test_correct_product_passes_the_check_without_using_random_numbers_of_the_run(capability):
    capability(9)
    state = torch.get_rng_state()
    assert module.grouped_product_obstacle(CPU) is None
    assert torch.equal(torch.get_rng_state(), state)


@needs_grouped_mm
def test_stale_gradient_of_an_empty_group_fails_the_check(capability, monkeypatch):
    product = F.grouped_mm

    def leaves_garbage(one: Tensor, other: Tensor, *, offs: Tensor) -> Tensor:
        out = product(one, other, offs=offs)
        if other.ndim == 2:
            out[1] = 3
        return out

    capability(9)
    monkeypatch.setattr(F, "grouped_mm", leaves_garbage)
    assert module.grouped_product_obstacle(CPU) == "torch's grouped product computes a wrong gradient of the weights"


@needs_grouped_mm
def test_product_that_raises_fails_the_check_with_one_warning(capability, monkeypatch):
    def raises(one: Tensor, other: Tensor, *, offs: Tensor) -> Tensor:
        raise RuntimeError("cutlass cannot initialize\nmore lines")

    capability(9)
    monkeypatch.setattr(F, "grouped_mm", raises)
    module.grouped_product_works.cache_clear()
    check = module.grouped_product_obstacle
    monkeypatch.setattr(module, "grouped_product_obstacle", lambda device: check(CPU))
    device = torch.device("cuda", 0)
    with pytest.warns(UserWarning, match=r"one after another.*failed: cutlass cannot initialize$"):
        assert not module.grouped_product_works(device)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not module.grouped_product_works(device)
    module.grouped_product_works.cache_clear()


def test_gpus_and_versions_without_a_correct_kernel_are_not_tried(capability, monkeypatch):
    monkeypatch.setattr(module, "wrong_products", lambda device: pytest.fail("tried"))
    capability(8, 6)
    assert "compute capability 8.6" in module.grouped_product_obstacle(CPU)
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.12.1+cu130"))
    capability(10)
    assert "needs torch 2.13 or newer; this is 2.12.1+cu130" in module.grouped_product_obstacle(CPU)
    monkeypatch.delattr(F, "grouped_mm", raising=False)
    capability(9)
    assert "needs torch 2.10 or newer" in module.grouped_product_obstacle(CPU)

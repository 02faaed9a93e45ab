"""Experts on a GPU in bfloat16: torch's grouped product against one product per expert, without waits of the host."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minimind import MiniMindConfig
from minimind.model import grouped_linear
from minimind.model.grouped_linear import (
    Groups,
    grouped_gradients,
    grouped_product,
    per_group_gradients,
    per_group_product,
    uses_grouped_product,
)
from minimind.model.moe import MixtureOfExperts, TokenRows
from minimind.model.packed_attention import PackSegments

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

SEGMENTS = ((40, 120, 97), (0, 64, 31), (11, 90, 200))
TOKENS = sum(map(sum, SEGMENTS))
H = 256


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def grouped(device):
    """Skips if this GPU or this torch has no correct grouped product."""
    if reason := grouped_linear.grouped_product_obstacle(device):
        pytest.skip(reason)


def moe(generation: int, device: torch.device, **fields) -> MixtureOfExperts:
    """A layer in which expert 3 gets no tokens."""
    torch.manual_seed(generation)
    config = MiniMindConfig(
        generation=generation, hidden_size=H, use_moe=True, moe_intermediate_size=384, num_experts=6, **fields
    )
    module = MixtureOfExperts(config).to(device)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.05)
        module.gate.weight.abs_()[3] = -5
    return module.to(torch.bfloat16).train()


def step(module: MixtureOfExperts, x: Tensor, rows: TokenRows) -> dict[str, Tensor]:
    """Output, auxiliary loss and all gradients of one forward and backward."""
    module.zero_grad()
    leaf = x.detach().requires_grad_()
    out, aux_loss = module(leaf, rows)
    ((out.float() * out.float()).mean() + aux_loss).backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    return {"out": out.detach(), "aux_loss": aux_loss.detach(), "x": leaf.grad, **gradients}


def inputs(device: torch.device) -> Tensor:
    # Positive, so that expert 3 scores least for every token.
    return torch.rand(1, TOKENS, H, generator=torch.Generator().manual_seed(1)).to(device, torch.bfloat16)


@pytest.mark.parametrize("sizes", [[37, 0, 64, 1, 0, 155], [0, 0, 0, 257, 0, 0]])
def test_grouped_products_equal_those_in_float64(sizes, device, grouped):
    generator = torch.Generator().manual_seed(2)
    shapes = ((sum(sizes), H), (len(sizes), 384, H), (sum(sizes), 384))
    x, weight, grad = (torch.randn(shape, generator=generator).to(device, torch.bfloat16) for shape in shapes)
    groups = Groups(torch.tensor(sizes, device=device).cumsum(0).to(torch.int32))
    assert uses_grouped_product(weight, x, grad)
    found = (grouped_product(x, weight, groups), *grouped_gradients(grad, x, weight, groups))
    x, weight, grad = x.double(), weight.double(), grad.double()
    expected = (per_group_product(x, weight, groups), *per_group_gradients(grad, x, weight, groups))
    for one, other in zip(found, expected, strict=True):
        # Summed in float32 and rounded once to 8 bits: off by up to 2^-9 of each number.
        assert (one.double() - other).norm() < 0.004 * other.norm()
    for size, gradient in zip(sizes, found[2], strict=True):
        assert size or torch.equal(gradient, torch.zeros_like(gradient)), "an empty group's gradient is zero"


@pytest.mark.parametrize(("generation", "k"), [(2, 2), (3, 1), (3, 3)])
def test_grouped_experts_equal_experts_one_by_one(generation, k, device, grouped, monkeypatch):
    module, x = moe(generation, device, num_experts_per_tok=k), inputs(device)
    rows = TokenRows(pack=PackSegments(SEGMENTS))
    found = step(module, x, rows)
    monkeypatch.setattr(grouped_linear, "grouped_product_works", lambda device: False)
    for name, expected in step(module, x, rows).items():
        error = (found[name].float() - expected.float()).norm()
        assert error <= 0.01 * expected.float().norm(), f"{name} is off by {error / expected.float().norm():.4f}"
    for stack in ("gate_proj", "up_proj", "down_proj"):
        gradient = found[f"experts.{stack}"]
        assert torch.equal(gradient[3], torch.zeros_like(gradient[3])), (
            "an expert without tokens has a gradient of zero"
        )
        assert gradient[:3].abs().sum() > 0


@pytest.mark.parametrize("layout", ["pack", "padded"])
def test_forward_and_backward_do_not_wait_for_the_gpu(layout, device, grouped):
    module, x = moe(3, device, num_experts_per_tok=2), inputs(device)
    mask = torch.ones(1, TOKENS, device=device)

    def rows() -> TokenRows:
        return TokenRows(pack=PackSegments(SEGMENTS)) if layout == "pack" else TokenRows(mask=mask)

    # The first step checks the grouped product, which waits for the GPU.
    step(module, x, rows())
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(module, x, rows())
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_wait_is_detected(device, monkeypatch):
    """Without the grouped product the host needs the number of tokens of each expert."""
    monkeypatch.setattr(grouped_linear, "grouped_product_works", lambda device: False)
    module, x = moe(3, device), inputs(device)
    rows = TokenRows(mask=torch.ones(1, TOKENS, device=device))
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            step(module, x, rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_two_steps_are_bitwise_equal(device):
    """All sums have a fixed order."""
    module, x = moe(2, device, num_experts_per_tok=3), inputs(device)
    rows = TokenRows(pack=PackSegments(SEGMENTS))
    for (name, one), other in zip(step(module, x, rows).items(), step(module, x, rows).values(), strict=True):
        assert torch.equal(one, other), name

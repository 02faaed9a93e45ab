"""Linear layers of Hugging Face models by the CPU's kernels, against float64 and against the layers' own forward."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from minimind.model.linear_layers import is_linear, use_kernels
from minimind.native import selection

LAYERS = {
    "without bias": lambda: nn.Linear(24, 40, bias=False),
    "with bias": lambda: nn.Linear(24, 40),
    "GPT-2's": lambda: Conv1D(40, 24),
}


def differentiated(layer, x, grad):
    """Output, and the gradients of the input and of each parameter."""
    x = x.detach().requires_grad_()
    out = layer(x)
    out.backward(grad)
    return [out.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize("name", LAYERS)
def test_kernels_compute_the_layers_output_and_gradients(name, cpu_kernels, monkeypatch):
    torch.manual_seed(1)
    layer = LAYERS[name]().to(torch.bfloat16)
    exact = copy.deepcopy(layer).double()
    x, grad = (torch.randn(2, 50, size).to(torch.bfloat16) for size in (24, 40))
    expected = differentiated(exact, x.double(), grad.double())
    model = nn.Sequential(layer)
    use_kernels(model)
    # torch's own functions of the layers are not called.
    monkeypatch.setattr(torch.nn.functional, "linear", None)
    monkeypatch.setattr(torch, "addmm", None)
    for one, other in zip(differentiated(model, x, grad), expected, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.double(), other, rtol=0.02, atol=0.02 * other.abs().mean().item())


@pytest.mark.parametrize("name", LAYERS)
def test_without_kernels_a_layer_computes_as_before(name):
    torch.manual_seed(1)
    layer = LAYERS[name]()
    x, grad = torch.randn(3, 24), torch.randn(3, 40)
    for dtype in (torch.float32, torch.bfloat16):
        plain, ours = nn.Sequential(copy.deepcopy(layer).to(dtype)), nn.Sequential(copy.deepcopy(layer).to(dtype))
        use_kernels(ours)
        with selection.using("torch" if dtype == torch.bfloat16 else "auto"):
            pairs = zip(*(differentiated(one, x.to(dtype), grad.to(dtype)) for one in (plain, ours)), strict=True)
        for one, other in pairs:
            assert torch.equal(one, other)


def test_a_derived_class_keeps_its_forward():
    class Scaled(nn.Linear):
        pass

    model = nn.Sequential(Scaled(2, 2), nn.Linear(2, 2))
    use_kernels(model)
    assert [type(layer).__name__ for layer in model] == ["Scaled", "_Linear"]


def test_a_layer_is_linear_before_and_after():
    """A model may be scored by two scorers, of which the second finds the kernels' classes."""

    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.ModuleList([nn.Linear(4, 4), Scaled(4, 4), nn.Identity()])
    for _ in range(2):
        assert [is_linear(layer) for layer in model] == [True, False, False]
        use_kernels(model)

"""Start values of adapters: new ones change nothing, and the reference stays the base."""

from __future__ import annotations

import torch

from minimind.model.adapters import adapter_of, add_adapters, reference_adapters
from minimind.weights.adapters import FreshAdapter
from tests.unit.weights.adapted import TOKENS, plain, trained


@torch.no_grad()
def test_new_adapters_change_nothing_and_are_the_same_in_every_order_of_reading(adapted):
    base, spec = adapted
    model = plain(base)
    before = model(TOKENS).logits
    add_adapters(model, spec)
    start, again = (FreshAdapter(spec, base, 3, torch.float32, "default") for _ in range(2))
    parameters = [(name, p) for name, p in model.named_parameters() if adapter_of(name)]
    for name, parameter in parameters:
        parameter.copy_(start.read(name))
    torch.testing.assert_close(model(TOKENS).logits, before, rtol=0, atol=1e-6)
    for name, parameter in reversed(parameters):
        assert torch.equal(again.read(name), parameter), name
    first = next(p for name, p in parameters if ".lora_A." in name)
    # The bounds of peft's own start values: those of a linear layer of torch.
    assert 0 < float(first.abs().max()) <= 1 / first.shape[1] ** 0.5


@torch.no_grad()
def test_the_reference_is_the_base_bit_for_bit_after_training(adapted):
    base, spec = adapted
    before = plain(base)(TOKENS).logits
    model, _ = trained(base, spec)
    after = model(TOKENS).logits
    assert not torch.equal(after, before)
    with reference_adapters(model):
        assert torch.equal(model(TOKENS).logits, before)
    assert torch.equal(model(TOKENS).logits, after)
    # The switch must not take gradients away from what trains.
    assert all(p.requires_grad == (adapter_of(name) is not None) for name, p in model.named_parameters())

"""Start values of adapters: new ones change nothing, and the reference stays the base."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from minimind.config import AdapterConfig
from minimind.errors import ConfigError
from minimind.model.adapters import adapter_of, add_adapters, reference_adapters
from minimind.weights.adapters import FreshAdapter, fresh_spec
from tests.unit.weights.adapted import TOKENS, dense, mixture, plain, spec_of, trained


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


def test_orthogonal_start_values_have_the_product_0():
    base = dense()
    spec = dataclasses.replace(spec_of(base), rank=6)
    start = FreshAdapter(spec, base, 3, torch.float32, "orthogonal")
    for layer in spec.layers:
        a, b = (start.read(f"{layer}.lora_{part}.default.weight") for part in "AB")
        rows, columns = base.shapes()[f"{layer}.weight"]
        assert (a.shape, b.shape) == ((6, columns), (rows, 6))
        assert min(a.abs().max(), b.abs().max()) > 0.01
        torch.testing.assert_close(b @ a, torch.zeros(rows, columns), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("init", "rank", "words"),
    [
        ("pissa", 4, "it moves a part of the weights"),
        ("pissa_niter_4", 4, "it moves a part of the weights"),
        ("eva", 4, "give it as --from_adapter"),
        ("mica", 4, "one of the two"),
        ("zeros", 4, "peft has no such start values; give default, gaussian, orthogonal"),
        ("orthogonal", 5, "even --lora_rank, not 5"),
    ],
)
def test_other_start_values_are_refused_by_name(init, rank, words):
    with pytest.raises(ConfigError, match=f"--lora_init {init}.*{words}"):
        fresh_spec(AdapterConfig(lora_rank=rank, lora_init=init), dense().config)


def test_experts_have_no_orthogonal_start_values():
    flags = AdapterConfig(lora_rank=4, lora_init="orthogonal", lora_targets="experts")
    with pytest.raises(ConfigError, match="--lora_init orthogonal: the adapters of stacked experts"):
        fresh_spec(flags, mixture().config)

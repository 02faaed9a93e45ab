"""Adapters in a model: which layers get them, what trains, names."""

from __future__ import annotations

import pytest
import torch

from minimind.errors import ConfigError
from minimind.model.adapters import (
    START,
    TRAINED,
    AdapterSpec,
    adapted_layer,
    adapter_of,
    add_adapters,
    base_name,
    find_targets,
    reference_adapters,
    saved_name,
    trained_name,
)
from minimind.model.configuration import MiniMindConfig
from minimind.model.modeling import MiniMindForCausalLM

DENSE = MiniMindConfig(
    generation=3, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, vocab_size=64
)
MIXTURE = MiniMindConfig(
    generation=3, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=64, use_moe=True
)
LAYER = "model.layers.0"


def short(names: tuple[str, ...]) -> set[str]:
    return {name.removeprefix(f"{LAYER}.") for name in names}


def test_targets_of_a_dense_model():
    model = MiniMindForCausalLM(DENSE)
    attention = {f"self_attn.{part}_proj" for part in "qkvo"}
    layers, stacks = find_targets(model, "all-linear")
    assert short(layers) == attention | {f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    assert stacks == ()
    assert short(find_targets(model, "square")[0]) == {"self_attn.q_proj", "self_attn.o_proj"}
    assert short(find_targets(model, "q_proj, mlp.up_proj,q_proj")[0]) == {"self_attn.q_proj", "mlp.up_proj"}


def test_targets_of_a_mixture():
    model = MiniMindForCausalLM(MIXTURE)
    layers, stacks = find_targets(model, "experts")
    assert short(stacks) == {f"mlp.experts.{part}_proj" for part in ("gate", "up", "down")}
    assert layers == find_targets(model, "all-linear")[0]


def test_what_is_frozen_gets_no_adapters():
    model = MiniMindForCausalLM(DENSE)
    model.model.layers[0].self_attn.requires_grad_(False)
    assert all("mlp" in name for name in find_targets(model, "all-linear")[0])


@pytest.mark.parametrize("targets", ["q_prj", "lm_head", "", "embed_tokens", "q_proj,nothing", "experts"])
def test_targets_that_mean_nothing_are_refused(targets):
    with pytest.raises(ConfigError, match="--lora_targets"):
        find_targets(MiniMindForCausalLM(DENSE), targets)


@pytest.fixture
def adapted():
    torch.manual_seed(0)
    model = MiniMindForCausalLM(DENSE)
    add_adapters(model, AdapterSpec(rank=2, alpha=4, layers=find_targets(model, "all-linear")[0]), start=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if adapter_of(name):
                parameter.normal_(std=0.1)
    return model


def test_only_the_trained_adapter_trains(adapted):
    names = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert names
    assert all(adapter_of(name) == TRAINED for name in names)
    assert {trained_name(name) for name, _ in adapted.named_parameters() if adapter_of(name) == START} == names


@torch.no_grad()
def test_the_start_adapter_is_the_reference_of_a_model_that_has_one(adapted):
    tokens = torch.arange(8)[None]
    trained = adapted(tokens).logits
    with reference_adapters(adapted):
        start = adapted(tokens).logits
    assert not torch.equal(start, trained)
    assert torch.equal(adapted(tokens).logits, trained)
    for name, parameter in adapted.named_parameters():
        if adapter_of(name) == START:
            parameter.copy_(dict(adapted.named_parameters())[trained_name(name)])
    with reference_adapters(adapted):
        assert torch.equal(adapted(tokens).logits, trained)


def test_names():
    name = f"{LAYER}.self_attn.q_proj.lora_A.default.weight"
    assert saved_name(name) == f"base_model.model.{LAYER}.self_attn.q_proj.lora_A.weight"
    assert adapted_layer(name) == (f"{LAYER}.self_attn.q_proj", "lora_A")
    vector = f"{LAYER}.self_attn.q_proj.lora_magnitude_vector.default.weight"
    assert saved_name(vector) == f"base_model.model.{LAYER}.self_attn.q_proj.lora_magnitude_vector"
    assert base_name(f"{LAYER}.self_attn.q_proj.base_layer.weight") == f"{LAYER}.self_attn.q_proj.weight"
    assert adapter_of(f"{LAYER}.self_attn.q_proj.base_layer.weight") is None


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 2.0), (True, 4.0)])
def test_scaling(rslora, scaling):
    assert AdapterSpec(rank=4, alpha=8, rslora=rslora, layers=("q",)).scaling == scaling

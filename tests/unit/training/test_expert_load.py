"""Tokens of each expert, counted in a forward of training and reduced once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minimind.model.configuration import MiniMindConfig
from minimind.ranks.world import World
from minimind.training.expert_load import ExpertLoad
from minimind.weights.construction import uninitialized_model
from tests.parity.families import tiny_config

pytestmark = pytest.mark.usefixtures("one_rank")
WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = MiniMindConfig(
        generation=3, use_moe=True, hidden_size=32, num_hidden_layers=2, vocab_size=64, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=16,
    )  # fmt: skip
    model = uninitialized_model(config, torch.float32)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.train()


def tokens(number):
    return torch.randint(0, 64, (1, number), generator=torch.Generator().manual_seed(number))


def test_every_assignment_of_a_token_is_counted_until_it_is_read(model):
    load = ExpertLoad.of(model, WORLD)
    model(tokens(30))
    model(tokens(50))
    found = load.reduce({})
    # 80 tokens, each to 2 of 4 experts.
    assert found["experts/tokens"] == 40
    assert found["experts/dead"] == 0
    assert 1 <= found["experts/busiest"] <= 2
    model(tokens(10))
    assert load.reduce({})["experts/tokens"] == 5


def test_evaluations_do_not_count(model):
    load = ExpertLoad.of(model, WORLD)
    model.eval()(tokens(30))
    assert load.reduce({}) == {}


def test_an_expert_that_the_router_never_chooses_is_dead(model):
    load = ExpertLoad.of(model, WORLD)
    gate = model.model.layers[1].mlp.gate
    # A layer's router that sends every token to its first two experts.
    gate.weight.data.zero_()
    torch.nn.Module.register_forward_hook(
        gate, lambda module, arguments, scores: scores + torch.tensor([9.0, 8.0, 0.0, 0.0])
    )
    model(tokens(200))
    found = load.reduce({})
    assert found["experts/dead"] == 2 / 8
    assert found["experts/busiest"] == 2.0


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_the_chosen_experts_of_transformers_routers_are_counted(model_type):
    config = tiny_config(model_type)
    torch.manual_seed(0)
    other = uninitialized_model(config, torch.float32)
    for parameter in other.parameters():
        nn.init.normal_(parameter, std=0.1)
    load, ids = ExpertLoad.of(other.train(), WORLD), torch.randint(0, 60, (2, 40))
    other(ids)
    found = load.reduce({})
    experts = next(module.num_experts for module in other.modules() if type(module).__name__.endswith("Router"))
    assert found["experts/tokens"] == 80 * config.num_experts_per_tok / experts
    other.eval()(ids)
    assert load.reduce({}) == {}


def test_a_dense_model_has_none():
    assert ExpertLoad.of(nn.Linear(1, 1), WORLD) is None

"""Tokens of each expert, counted in a forward of training and reduced once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from minimind.model.configuration import MiniMindConfig
from minimind.ranks.world import World
from minimind.training.expert_load import ExpertLayers, ExpertLoad
from minimind.weights.construction import uninitialized_model
from tests.parity.families import tiny_config, tiny_model

pytestmark = pytest.mark.usefixtures("one_rank")
# Names of the number of experts that a token gets.
CHOSEN = ("num_experts_per_tok", "moe_k", "moe_topk", "moe_top_k")
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


def load_of(model):
    return ExpertLoad(ExpertLayers.of(model).counted, WORLD)


def tokens(number):
    return torch.randint(0, 64, (1, number), generator=torch.Generator().manual_seed(number))


def test_every_assignment_of_a_token_is_counted_until_it_is_read(model):
    load = load_of(model)
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
    load = load_of(model)
    model.eval()(tokens(30))
    assert load.reduce({}) == {}


def test_an_expert_that_the_router_never_chooses_is_dead(model):
    load = load_of(model)
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


# Softmax, sigmoid, with biases, with groups; experts of which some are no networks.
@pytest.mark.parametrize(
    "model_type", ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "ernie4_5_moe", "dbrx", "longcat_flash"]
)
def test_the_chosen_experts_of_transformers_models_are_counted(model_type):
    config = tiny_config(model_type)
    other = tiny_model(config)
    layers = ExpertLayers.of(other)
    assert layers.others == ()
    load, ids = load_of(other.train()), torch.randint(0, 60, (2, 40))
    other(ids)
    found = load.reduce({})
    (experts,) = {one.number for one in layers.counted.values()}
    owner = getattr(config, "ffn_config", config)  # DBRX has it there
    chosen = 80 * next(getattr(owner, name) for name in CHOSEN if hasattr(owner, name))
    if model_type == "longcat_flash":
        assert 0 < found["experts/tokens"] < chosen / experts
    else:
        assert found["experts/tokens"] == chosen / experts
    assert 1 <= found["experts/busiest"] <= experts
    other.eval()(ids)
    assert load.reduce({}) == {}


@pytest.mark.parametrize(("model_type", "name"), [("llama4_text", "Llama4TextMoe"), ("doge", "DogeCDMoE")])
def test_mixtures_that_cannot_be_counted_are_named(model_type, name):
    config = tiny_config(model_type)
    if model_type == "doge":
        config.is_moe = True
    assert ExpertLayers.of(tiny_model(config)) == ExpertLayers(counted={}, others=(name,))


def test_a_layer_that_no_token_reaches_is_not_dead(model):
    """As the experts for images of a model that trains on texts."""
    unused = copy.deepcopy(model.model.layers[0].mlp.experts)
    model.unused = unused
    load = load_of(model)
    assert unused in ExpertLayers.of(model).counted
    model(tokens(30))
    found = load.reduce({})
    assert (found["experts/dead"], found["experts/tokens"]) == (0, 15)


def test_a_dense_model_has_none():
    assert ExpertLayers.of(nn.Linear(1, 1)) == ExpertLayers(counted={}, others=())

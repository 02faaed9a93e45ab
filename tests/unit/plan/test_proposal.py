"""Sizes for a number of parameters: near it, of MiniMind's shape, and buildable."""

from __future__ import annotations

import math

import pytest

from minimind.errors import ConfigError
from minimind.plan.proposal import propose
from minimind.weights.construction import empty_model, tensor_shapes


@pytest.mark.parametrize(("parameters", "generation"), [(2.6e7, 3), (1e8, 2), (1e9, 3), (7e9, 3)])
def test_the_model_is_near_and_of_minimind_s_shape(parameters, generation):
    found = propose(parameters, generation, use_moe=False, vocab_size=6400)
    config = found.config
    assert found.parameters == pytest.approx(parameters, rel=0.1)
    assert config.hidden_size / config.num_hidden_layers == pytest.approx(96, rel=0.3)
    assert config.head_dim <= 128
    shapes = tensor_shapes(empty_model(config))
    assert found.parameters == found.active == sum(map(math.prod, shapes.values()))
    assert found.tokens == 20 * found.parameters


def test_a_mixture_has_tokens_for_the_parameters_that_a_token_uses():
    found = propose(1e9, 3, use_moe=True, vocab_size=6400)
    shapes = tensor_shapes(empty_model(found.config))
    experts = sum(math.prod(shape) for name, shape in shapes.items() if ".experts." in name)
    assert found.active == found.parameters - experts * 3 // 4
    assert "4 experts, 1 per token" in found.describe(5e-4)


def test_the_learning_rate_falls_with_the_width():
    found = propose(1e9, 3, use_moe=False, vocab_size=6400)
    assert found.config.hidden_size == 2048
    assert found.learning_rate(5e-4) == pytest.approx(5e-4 * 768 / 2048, rel=0.02)
    assert found.flags(5e-4)["num_attention_heads"] == 16


@pytest.mark.parametrize("parameters", [0.0, 10.0, math.inf, math.nan])
def test_numbers_that_make_no_model(parameters):
    with pytest.raises(ConfigError, match="--params"):
        propose(parameters, 3, use_moe=False, vocab_size=6400)

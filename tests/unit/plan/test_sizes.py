"""Sizes off the configurations of models that are not like MiniMind."""

from __future__ import annotations

import pytest
from transformers import Gemma3Config, Gemma3nTextConfig, Gemma3TextConfig, MambaConfig, RwkvConfig

from minimind.errors import WeightsError
from minimind.plan.sizes import ModelSizes

SHAPES = {"model.embed_tokens.weight": (100, 8)}


@pytest.mark.parametrize("config", [MambaConfig(), RwkvConfig()])
def test_a_model_without_heads_is_an_error_that_says_so(config):
    with pytest.raises(WeightsError, match=f"a {config.model_type} model cannot be planned: no num_attention_heads"):
        ModelSizes.of(config, SHAPES)


def test_a_nested_configuration_s_text_part_is_taken():
    text = Gemma3TextConfig(hidden_size=64, intermediate_size=96, num_attention_heads=4, head_dim=32, vocab_size=100)
    sizes = ModelSizes.of(Gemma3Config(text_config=text), SHAPES)
    assert (sizes.hidden, sizes.inner, sizes.query, sizes.vocab) == (64, 96, 128, 100)
    assert sizes.parameters == 800


def test_the_widest_layer_counts_where_each_has_its_own_width():
    config = Gemma3nTextConfig(num_hidden_layers=2, intermediate_size=[32, 48])
    assert ModelSizes.of(config, SHAPES).inner == 48

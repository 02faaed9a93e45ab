"""Sizes from the configurations of models of other families."""

from __future__ import annotations

import pytest
from transformers import Gemma3Config, Gemma3nTextConfig, Gemma3TextConfig, Gemma4TextConfig, MambaConfig, RwkvConfig

from minimind.errors import WeightsError
from minimind.model.configuration import MiniMindConfig
from minimind.plan.sizes import ModelSizes, given_size

SHAPES = {"model.embed_tokens.weight": (100, 8)}


@pytest.mark.parametrize("config", [MambaConfig(), RwkvConfig()])
def test_model_without_heads_is_an_error(config):
    message = f"cannot plan a {config.model_type} model: its configuration has no num_attention_heads"
    with pytest.raises(WeightsError, match=message):
        ModelSizes.of(config, SHAPES)


def test_text_part_of_a_nested_configuration_counts():
    text = Gemma3TextConfig(hidden_size=64, intermediate_size=96, num_attention_heads=4, head_dim=32, vocab_size=100)
    sizes = ModelSizes.of(Gemma3Config(text_config=text), SHAPES)
    assert (sizes.hidden, sizes.inner, sizes.query, sizes.vocab) == (64, 96, 128, 100)
    assert sizes.parameters == 800


def test_widest_layer_counts_if_widths_differ():
    config = Gemma3nTextConfig(num_hidden_layers=2, intermediate_size=[32, 48])
    assert ModelSizes.of(config, SHAPES).inner == 48


def test_sizes_of_minimind_by_hand():
    """Query heads 8 x 8 = 64 channels, key heads 2 x 8 = 16; ZeRO-3 pads each tensor to a multiple of the ranks."""
    config = MiniMindConfig(
        generation=3, hidden_size=64, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2, vocab_size=100
    )
    shapes = {"model.embed_tokens.weight": (100, 64), "model.layers.0.self_attn.q_norm.weight": (7,)}
    sizes = ModelSizes.of(config, shapes)
    assert (sizes.vocab, sizes.hidden, sizes.layers, sizes.query, sizes.key) == (100, 64, 2, 64, 16)
    assert (sizes.tensors, sizes.parameters, sizes.largest) == ((6400, 7), 6407, 6400)
    assert (sizes.routed, sizes.normed_heads) == (0, True)
    assert (sizes.small(6), sizes.small(7), sizes.small(6400)) == (0, 7, 6407)
    assert (sizes.shard(1), sizes.shard(2), sizes.shard(4)) == (6407, 3200 + 4, 1600 + 2)


def test_missing_and_empty_sizes_are_zero():
    config = MiniMindConfig(hidden_size=64)
    assert given_size(config, "hidden_size") == 64
    assert given_size(config, "no_such_size") == 0
    config.widths = [3, 5, 4]
    assert given_size(config, "widths") == 5


def test_where_layers_differ_the_largest_size_counts():
    config = Gemma4TextConfig(num_hidden_layers=2, per_layer_config={1: {"head_dim": 512}})
    assert given_size(config, "head_dim") == 512
    assert ModelSizes.of(config, {"lm_head.weight": (4, 8)}).query == 512 * config.num_attention_heads


def test_adapters_train_and_packed_weights_are_smaller():
    """100 x 64 elements in 4 bits are 3200 bytes of indices, and 100 scales of 4."""
    config = MiniMindConfig(generation=3, hidden_size=64, num_hidden_layers=2, num_attention_heads=8, vocab_size=100)
    shapes = {"q.weight": (100, 64), "norm.weight": (64,)}
    sizes = ModelSizes.of(config, shapes, {"a": (4, 64), "b": (100, 4)}, ["q.weight"])
    assert (sizes.parameters, sizes.trained, sizes.trained_shard(3)) == (6464 + 656, 656, 86 + 134)
    assert sizes.packed == (6400,)
    assert (sizes.saved(2), sizes.saved(4), sizes.saved(2, ranks=2)) == (12800 - 3600, 25600 - 3600, 4600)
    assert ModelSizes.of(config, shapes).saved(2) == 0
    assert ModelSizes.of(config, shapes).trained == 6464

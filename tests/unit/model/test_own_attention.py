"""The switch between a model's own attention and attention over packs."""

from __future__ import annotations

import copy

import pytest
from transformers import AutoModelForCausalLM, BloomConfig, Gemma2Config, LlamaConfig

from minimind.model.own_attention import AttentionSwitch
from minimind.model.packed_attention import PACKED_ATTENTION
from tests.parity.families import tiny_config, tiny_model

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 9, "num_attention_heads": 2, "head_dim": 8}
LLAMA = LlamaConfig(**SIZES, intermediate_size=16)
GEMMA_2 = Gemma2Config(**SIZES, intermediate_size=16, num_key_value_heads=1)


@pytest.mark.parametrize(
    ("config", "own"),
    [(LLAMA, "sdpa"), (GEMMA_2, "eager"), (BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=9), "eager")],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_own_is_what_transformers_chose(config, own):
    """SDPA knows neither Gemma-2's soft capping nor Bloom's position bias."""
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    switch = AttentionSwitch.of(model)
    switch.packed()
    assert model.config._attn_implementation == PACKED_ATTENTION
    switch.own()
    assert model.config._attn_implementation == own


def test_a_second_switch_of_a_model_knows_the_same():
    model = AutoModelForCausalLM.from_config(copy.deepcopy(LLAMA))
    AttentionSwitch.of(model).packed()
    AttentionSwitch.of(model).own()
    assert model.config._attn_implementation == "sdpa"


def test_parts_of_a_composite_model_are_switched_too():
    """The text half reads its own configuration, not that of the whole model."""
    model = tiny_model(tiny_config("gemma3"))
    text = model.model.language_model.config
    assert text is not model.config
    switch = AttentionSwitch.of(model)
    text._attn_implementation = "eager"
    switch.packed()
    assert text._attn_implementation == PACKED_ATTENTION
    switch.own()
    assert text._attn_implementation == "sdpa"

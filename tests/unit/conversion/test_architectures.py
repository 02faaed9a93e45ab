"""What MiniMind equals elsewhere, in both directions, and what is refused by name."""

from __future__ import annotations

import pytest
from transformers import GPT2Config, LlamaConfig, Qwen3Config, Qwen3MoeConfig

from minimind import MiniMindConfig
from minimind.conversion.architectures import LLAMA, QWEN3, minimind_config, plain_config
from minimind.errors import WeightsError
from tests.unit.conversion.made import KINDS, form_of


@pytest.mark.parametrize("kind", KINDS)
def test_a_configuration_comes_back_as_it_was(kind):
    config = MiniMindConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **KINDS[kind])
    plain = plain_config(config, form_of(kind))
    assert plain.model_type == kind.split()[0]
    again = minimind_config(plain)
    ignored = {"pad_token_id"}  # None is not written
    assert {k: v for k, v in again.to_dict().items() if k not in ignored} == config.to_dict()


@pytest.mark.parametrize(
    ("fields", "to", "named"),
    [
        ({"generation": 2, "use_moe": True}, LLAMA, r"shared experts \(1 in each layer\)"),
        ({"generation": 2, "use_moe": True}, QWEN3, r"shared experts \(1 in each layer\)"),
        ({"generation": 3, "use_moe": True, "n_shared_experts": 2}, QWEN3, r"shared experts \(2 in each layer\)"),
        ({"generation": 2, "use_moe": True, "n_shared_experts": 0}, LLAMA, "mixture of experts, and Llama has none"),
        ({"generation": 2}, QWEN3, "does not normalise queries and keys.*--to llama"),
        ({"generation": 3}, LLAMA, "q_norm, k_norm.*--to qwen3"),
        ({"generation": 2, "hidden_size": 30, "head_dim": 16}, LLAMA, "hidden size"),
    ],
)
def test_what_has_no_equal_is_named(fields, to, named):
    config = MiniMindConfig(**{"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32, **fields})
    with pytest.raises(WeightsError, match=named):
        plain_config(config, to)


def test_yarn_whose_ends_other_programs_round_otherwise_is_refused():
    """The slow end lies beyond the last channel, where MiniMind cuts it and transformers does not."""
    config = MiniMindConfig(generation=3, hidden_size=32, head_dim=16, rope_theta=20.0, inference_rope_scaling=True)
    with pytest.raises(WeightsError, match="rotary embeddings of MiniMind and qwen3 differ"):
        plain_config(config, QWEN3)


def test_yarn_in_a_short_context_is_no_yarn():
    config = MiniMindConfig(generation=3, inference_rope_scaling=True, max_position_embeddings=1024)
    assert plain_config(config, QWEN3).rope_parameters["rope_type"] == "default"


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (GPT2Config(), "'gpt2' has no equal"),
        (Qwen3Config(**SIZES, attention_bias=True), "attention_bias True"),
        (Qwen3Config(**SIZES, use_sliding_window=True, sliding_window=4), "use_sliding_window True"),
        (Qwen3MoeConfig(**SIZES, mlp_only_layers=[0]), r"mlp_only_layers \[0\]"),
        (Qwen3MoeConfig(**SIZES, decoder_sparse_step=2), "decoder_sparse_step 2"),
        (LlamaConfig(**SIZES, mlp_bias=True), "mlp_bias True"),
        (LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}), "'linear'"),
    ],
)
def test_what_minimind_does_not_compute_is_named(config, named):
    with pytest.raises(WeightsError, match=named):
        minimind_config(config)


def test_a_yarn_factor_that_transformers_derives_is_minimind_s():
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6, "original_max_position_embeddings": 2048}
    config = minimind_config(Qwen3Config(**SIZES, rope_parameters=rope, max_position_embeddings=8192))
    assert config.yarn["attention_factor"] == pytest.approx(1.1386294)

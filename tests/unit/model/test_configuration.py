"""Configurations of both generations: defaults, names that determine the generation, aliases, invalid fields."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from minimind import MiniMindConfig

# Feed-forward widths by each generation's rule, for a hidden size of 512:
# 2: 512 * 8 / 3 = 1365.3, cut to 1365, up to the next multiple of 64: 22 * 64 = 1408
# 3: 512 * pi = 1608.5, up to the next multiple of 64: 26 * 64 = 1664
DEFAULTS = {
    2: {
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "use_moe": False,
        "vocab_size": 6400,
        "dropout": 0.0,
        "hidden_act": "silu",
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 1408,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "inference_rope_scaling": False,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "seq_aux": True,
        "router_aux_loss_coef": 0.01,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
    },
    3: {
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "intermediate_size": 1664,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "num_experts": 4,
        "num_experts_per_tok": 1,
        "n_shared_experts": 0,
        "seq_aux": False,
        "router_aux_loss_coef": 5e-4,
        "tie_word_embeddings": True,
    },
}


@pytest.mark.parametrize(("generation", "name"), [(g, name) for g in DEFAULTS for name in DEFAULTS[g]])
def test_defaults_are_minimind(generation, name):
    assert getattr(MiniMindConfig(generation=generation), name) == DEFAULTS[generation][name]


# 768 * pi = 2412.7 -> 38 * 64 = 2432, MiniMind-3's own width; 768 * 8 / 3 = 2048 is a multiple of 64 already
@pytest.mark.parametrize(("generation", "expected"), [(2, 2048), (3, 2432)])
def test_feed_forward_width_follows_the_hidden_size(generation, expected):
    assert MiniMindConfig(generation=generation, hidden_size=768).intermediate_size == expected


@pytest.mark.parametrize("name", ["n_routed_experts", "n_shared_experts", "aux_loss_alpha", "scoring_func", "seq_aux"])
def test_names_that_only_generation_2_has(name):
    value = {"scoring_func": "softmax", "seq_aux": True, "aux_loss_alpha": 0.1}.get(name, 1)
    assert MiniMindConfig(**{name: value}).generation == 2


@pytest.mark.parametrize("name", ["num_experts", "moe_intermediate_size", "router_aux_loss_coef", "head_dim"])
def test_names_that_only_generation_3_has(name):
    assert MiniMindConfig(**{name: 0.1 if name == "router_aux_loss_coef" else 16}).generation == 3


def test_generation_is_2_if_the_names_fit_both():
    assert MiniMindConfig(hidden_size=64, use_moe=True, dropout=0.1).generation == 2


def test_explicit_generation_has_priority_over_names():
    assert MiniMindConfig(generation=2, head_dim=16).generation == 2
    assert MiniMindConfig(generation=3, seq_aux=False).generation == 3


@pytest.mark.parametrize("generation", [2, 3])
@pytest.mark.parametrize(
    ("old", "new", "value"),
    [("n_routed_experts", "num_experts", 7), ("aux_loss_alpha", "router_aux_loss_coef", 0.25)],
)
def test_fields_have_the_names_of_both_generations(generation, old, new, value):
    for given in (old, new):
        config = MiniMindConfig(generation=generation, **{given: value})
        assert getattr(config, old) == value
        assert getattr(config, new) == value


def test_key_value_heads_of_none_mean_one_for_each_head():
    assert MiniMindConfig(num_key_value_heads=None, num_attention_heads=4).num_key_value_heads == 4


def test_shared_experts_of_none_mean_zero():
    assert MiniMindConfig(n_shared_experts=None).n_shared_experts == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"generation": 4}, "generation is 4; MiniMind has generations 2 and 3"),
        (
            {"num_attention_heads": 8, "num_key_value_heads": 3},
            "num_attention_heads 8 is not a multiple of num_key_value_heads 3",
        ),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'; MiniMind supports 'softmax'"),
        (
            {"use_moe": True, "num_experts": 2, "num_experts_per_tok": 3},
            "num_experts_per_tok is 3; it must be between 1 and num_experts, 2",
        ),
        (
            {"use_moe": True, "num_experts_per_tok": 0},
            "num_experts_per_tok is 0; it must be between 1 and num_experts, 4",
        ),
    ],
)
def test_invalid_fields_are_reported(fields, message):
    with pytest.raises(ValueError, match=message):
        MiniMindConfig(**fields)


def test_experts_are_not_checked_in_a_dense_model():
    """MiniMind's dense configurations contain these fields."""
    assert MiniMindConfig(num_experts=2, num_experts_per_tok=3).num_experts_per_tok == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"generation": 2, "use_moe": True, "n_routed_experts": 6, "aux_loss_alpha": 0.5},
        {"generation": 3, "use_moe": True, "head_dim": 16, "moe_intermediate_size": 48},
        {"generation": 2, "inference_rope_scaling": True, "rope_scaling": {"factor": 4.0}},
        {"generation": 3, "tie_word_embeddings": False, "num_key_value_heads": None},
    ],
    ids=str,
)
def test_configuration_survives_a_round_trip(fields, tmp_path):
    config = MiniMindConfig(hidden_size=64, **fields)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is MiniMindConfig
    ours, theirs = config.to_dict(), again.to_dict()
    # The path of the file is not part of the configuration.
    ours.pop("_name_or_path")
    theirs.pop("_name_or_path")
    assert theirs == ours


def test_yarn_is_off_by_default_and_has_minimind_values():
    assert MiniMindConfig().yarn is None
    assert MiniMindConfig(rope_scaling={"factor": 4.0}).yarn is None
    assert MiniMindConfig(inference_rope_scaling=True).yarn == {
        "original_max_position_embeddings": 2048,
        "factor": 16.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "attention_factor": 1.0,
    }

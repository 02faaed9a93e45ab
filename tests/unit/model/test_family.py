"""Properties of model families, and the reasons why a model cannot be packed."""

from __future__ import annotations

import pytest
from transformers import (
    BloomConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma4TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3Config,
)

from minimind import MiniMindConfig
from minimind.model.family import (
    FAMILIES,
    HUGGING_FACE,
    MINIMIND,
    ModelFamily,
    family_of,
    layer_values,
    packing_obstacle,
)
from minimind.plan.sizes import ModelSizes


class DerivedConfig(MiniMindConfig):
    """A configuration class made from MiniMind's, without an entry of its own."""

    model_type = "derived"


@pytest.mark.parametrize("generation", [2, 3])
def test_minimind_models_are_labelled_by_generation(generation):
    config = MiniMindConfig(generation=generation)
    assert family_of(config) is MINIMIND
    assert family_of(config).label(config) == f"MiniMind generation {generation}"
    assert family_of(config).generation(config) == generation


def test_hugging_face_models_are_labelled_by_model_type():
    config = Qwen3Config()
    assert family_of(config) is HUGGING_FACE
    assert family_of(config).label(config) == "qwen3"
    assert family_of(config).generation(config) is None


def test_a_derived_configuration_has_the_family_of_its_base_class():
    assert family_of(DerivedConfig()) is MINIMIND


def test_the_entry_of_a_derived_configuration_takes_precedence(monkeypatch):
    """The nearest base class in the table counts, for any order of the table."""
    own = ModelFamily(exports_pth=True)
    monkeypatch.setattr("minimind.model.family.FAMILIES", {**FAMILIES, DerivedConfig: own})
    assert family_of(DerivedConfig()) is own
    assert family_of(MiniMindConfig()) is MINIMIND


def test_minimind_properties():
    """Packs are exact, the backbone takes `keep`, `.pth` is written, one dropout field, norms in the model's dtype."""
    assert MINIMIND.packs_by_construction
    assert MINIMIND.backbone_selects_positions
    assert MINIMIND.exports_pth
    assert MINIMIND.dropout_fields == ("dropout",)
    assert not MINIMIND.keeps_float32_norm_inputs
    assert hasattr(MiniMindConfig(), "dropout")


def test_hugging_face_properties():
    """Llama calls attention dropout `attention_dropout`, GPT-2 `attn_pdrop`."""
    assert not HUGGING_FACE.packs_by_construction
    assert not HUGGING_FACE.backbone_selects_positions
    assert not HUGGING_FACE.exports_pth
    assert HUGGING_FACE.dropout_fields == ("attention_dropout", "attn_pdrop")
    assert HUGGING_FACE.keeps_float32_norm_inputs
    assert hasattr(LlamaConfig(), "attention_dropout")
    assert hasattr(GPT2Config(), "attn_pdrop")


@pytest.mark.parametrize(("config", "expected"), [(MiniMindConfig(), False), (LlamaConfig(), True)])
def test_the_plan_counts_float32_norm_inputs_by_family(config, expected):
    assert ModelSizes.of(config, {"lm_head.weight": (4, 8)}).float32_norms is expected


@pytest.mark.parametrize(
    "config",
    [
        MiniMindConfig(),
        MiniMindConfig(use_moe=True),
        LlamaConfig(),
        Qwen3Config(),
        MixtralConfig(sliding_window=None),
        MixtralConfig(sliding_window=None, output_router_logits=True),
        GraniteConfig(logits_scaling=1.0),
        # A layer with a window is like any other if the window is at least as long as the longest row.
        Qwen3Config(layer_types=["full_attention", "sliding_attention"], num_hidden_layers=2, sliding_window=128),
        # Qwen2 and Mistral declare a window; it matters only where it is used and shorter than the longest row.
        Qwen2Config(use_sliding_window=False, sliding_window=32),
        MistralConfig(sliding_window=128),
    ],
    ids=lambda config: type(config).__name__,
)
def test_models_that_can_be_packed(config):
    assert packing_obstacle(config, max_seq_len=128) is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (BloomConfig(), "BloomForCausalLM does not use transformers' attention interface"),
        (
            Qwen3Config(layer_types=["full_attention", "chunked_attention"], num_hidden_layers=2),
            "kind chunked_attention",
        ),
        (
            Gemma3Config(
                text_config={"layer_types": ["sliding_attention"], "num_hidden_layers": 1, "sliding_window": 9}
            ),
            "sliding window of 9 tokens",
        ),
        (MistralConfig(sliding_window=127), "sliding window of 127 tokens"),
        (GraniteConfig(logits_scaling=8.0), "transforms its logits (logits_scaling)"),
        (
            Gemma2Config(layer_types=["full_attention"], num_hidden_layers=1, sliding_window=None),
            "transforms its logits (final_logit_softcapping)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_reasons_against_packing(config, reason):
    obstacle = packing_obstacle(config, max_seq_len=128)
    assert obstacle is not None
    assert reason in obstacle


def test_values_of_layers_that_differ():
    """Gemma-4's full layers have wider heads; transformers refuses to name one size for all."""
    config = Gemma4TextConfig(num_hidden_layers=2, per_layer_config={1: {"head_dim": 512, "sliding_window": 9}})
    assert layer_values(config, "head_dim") == [256, 512]
    assert layer_values(config, "hidden_size") == [config.hidden_size]
    assert layer_values(config, "not a field") == [None]
    assert layer_values(Qwen3Config(layer_types=["full_attention"] * 2, num_hidden_layers=2), "layer_types") == [
        "full_attention",
        "full_attention",
    ]
    assert packing_obstacle(config, max_seq_len=128) == "it attends over a sliding window of 9 tokens"

"""Every causal language model that transformers can build, as a tiny random model.

    transformers' table of causal models -> model_types -> tiny_config -> tiny_model

A configuration is shrunk by the names of its fields, so that a family of a new transformers needs no entry here unless
its fields depend on each other in a new way. Each kind of layer that a family has is kept.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 97
LAYERS = 2
POSITIONS = 256
# Name of a field -> its size in a tiny model. The first pattern that matches the whole name counts.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"(shared_|dense_|moe_|experts?_)*(intermediate|ffn_hidden)_size", 48),
    (r"intermediate_size_mlp|((de|en)coder_)?ffn_dim|n_inner|dff|dim_ff|feed_forward_size|d_inner", 48),
    (r"moe_latent_size", 16),
    (
        r"hidden_size|n_embd|d_model|emb_dim|embedding_dim|((in|out)put_)?embedding_size|word_embed_proj_dim|lru_width",
        32,
    ),
    (
        r"attention_hidden_size|hidden_size_per_layer_input|router_hidden_size|laurel_rank|dim_model_base|ple_embed_dim",
        32,
    ),
    (r"(\w+_)?vocab_size(_per_layer_input)?|encoder_hash_byte_group_vocab", VOCAB),
    (r"num_hidden_layers|n_layers?|num_layers|((de|en)coder_|num_(de|en)coder_)layers|num_blocks", LAYERS),
    (r"(swa_)?num_attention_heads|n_heads?|num_heads|((de|en)coder_|num_(de|en)coder_)?attention_heads", 4),
    (r"num_query_groups", 4),
    (r"index_n_heads", 16),  # with few heads several keys score exactly 0, and which of them are chosen is chance
    (r"(swa_)?num_key_value_heads|num_kv_heads|kv_n_heads", 2),
    (r"(global_|swa_|swa_v_|index_|qk_rope_|qk_nope_|v_|linear_|attention_)*head_(dim|size)", 8),
    (r"d_head|dim_head|kv_channels", 8),
    (r"rotary_dim|d_rel|o_groups", 4),
    (r"(q|kv|o)_lora_rank|qk_head_dim|adapter_rank|hc_lowrank|loop_gate_rank|gated_norm_rank", 16),
    (r"num_(local_)?experts|n_routed_experts|moe_num_experts|zero_expert_num", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k", 2),
    (r"(n|topk|num_expert)_group", 1),
    (r"(n|num|moe_num)_shared_experts|first_k_dense_replace|num_dense_layers|num_kv_shared_layers", 1),
    (r"max_position_embeddings|n_positions|max_seq_len|n_ctx|context_length|model_max_length", POSITIONS),
    (r"mamba_n(um)?_heads|linear_num_((key|value)_)?heads|n_mamba_heads", 4),
    (r"mamba_d_head|mamba_head_?dim|linear_(key|value)_head_dim", 16),
    (r"mamba_d_state|ssm_state_size|state_size", 8),
    (r"(mamba_)?n_?groups", 1),
    (r"mamba_dt_rank|time_step_rank", 4),
    (r"(mamba_)?chunk_size", 16),
    (r"(bos|eos|sep|cls|mask|decoder_start|forced_eos|forced_bos|eod)_token_id", 2),
    (r"pad_token_id", 0),
    (r"query_pre_attn_scalar", 8),
    (r"ngram_vocab_size_base", 50),
)
# What depends on the number of layers or belongs to a file.
_LEFT_OUT = ("per_layer_config", "transformers_version", "architectures")
# Lists with an entry for each layer.
_BY_LAYER = re.compile(r"(\w+_)?layer_types|layers_block_type|indexer_types|no_rope_layers|activation_sparsity_pattern")
# Fields of a family that depend on others, or that its class leaves out.
_OVERRIDES: Mapping[str, Mapping[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dory": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "num_hidden_layers": 3,
             "n_input_layers": 1, "n_recurrent_layers": 1, "n_output_layers": 1},
    # Its sliding layers have other sizes, which are not shrunk with the others.
    "dots3_note_text": {"per_layer_config": {"1": {
        "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 24, "kv_lora_rank": 24, "head_dim": 24,
        "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}}},
    "falcon_h1": {"mamba_d_ssm": 32},
    "gemma3n_text": {"num_kv_shared_layers": 0, "intermediate_size": 48},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hrm_text": {"num_layers_per_stack": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "laguna": {"num_attention_heads_per_layer": [4, 4]},
    "lfm2": {"layer_types": ["conv", "full_attention"], "full_attn_idxs": [1]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"head_dim": 16},
    "qwen4_exp_text": {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
                       "indexer_compress_ratio": 2},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"is_decoder": True, "axial_pos_shape": [16, 16], "axial_pos_embds_dim": [16, 16]},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3,
              "attention_hidden_size": 64, "attention_head_dim": 16},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3,
               "hybrid_layer_ids": [1, 2], "attention_hidden_size": 64, "attention_head_dim": 16},
}  # fmt: skip


def model_types() -> list[str]:
    """Model types of transformers' table of causal models, in alphabetical order."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str) -> PretrainedConfig:
    """A small configuration of a model type, otherwise with the family's own defaults.

    Raises:
        Exception: of any class, if the family's fields depend on each other in a way that is not known here.
    """
    config = CONFIG_MAPPING[model_type]()
    return type(config)(**_shrunk(config.to_dict()))


def tiny_model(config: PretrainedConfig) -> PreTrainedModel:
    """A model of a configuration as transformers builds it, in eval mode, with weights for which attention matters."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.1, generator=generator)
    return model


def _shrunk(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration in a tiny model; configurations in it are shrunk too."""
    kept = {name: value for name, value in fields.items() if name not in _LEFT_OUT}
    out = {name: _small(name, value) for name, value in kept.items()}
    # As many layers as there are kinds of them, at least two.
    kinds = {name: list(dict.fromkeys(value)) for name, value in kept.items() if _is_by_layer(name, value)}
    layers = max([LAYERS, *(len(value) for value in kinds.values())])
    out |= {name: [value[index % len(value)] for index in range(layers)] for name, value in kinds.items()}
    out |= {name: layers for name, value in out.items() if name in ("num_hidden_layers", "n_layer") and value}
    if out.get("kv_lora_rank"):
        out["num_key_value_heads"] = 4  # latent attention has no groups of heads
    if "num_key_value_heads" in out and out["num_key_value_heads"] is None:
        out["num_key_value_heads"] = 4
    if "head_dim" in out and out["head_dim"] is None:
        out["head_dim"] = 8
    out |= _OVERRIDES.get(str(out.pop("model_type", "")), {})
    return out


def _is_by_layer(name: str, value: object) -> bool:
    return isinstance(value, list) and bool(value) and _BY_LAYER.fullmatch(name) is not None


def _small(name: str, value: Any) -> Any:
    if isinstance(value, dict) and "model_type" in value:
        return {**_shrunk(value), **({"model_type": value["model_type"]} if value["model_type"] else {})}
    if not isinstance(value, int) or isinstance(value, bool) or value <= 1:
        return value
    return next((min(size, value) for pattern, size in _SIZES if re.fullmatch(pattern, name)), value)

"""Every causal language model that transformers can build, as a tiny random model.

    transformers' table of causal models -> model_types -> tiny_config -> tiny_model

A configuration is shrunk by the names of its fields, so that a family of a new transformers needs no entry here unless
its fields depend on each other in a new way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 97
LAYERS = 2
# Name of a field -> its size in a tiny model. The first pattern that matches the whole name counts.
_SIZES: tuple[tuple[str, int], ...] = (
    (
        r"(shared_|dense_|moe_|expert_|shared_expert_|shared_experts_|moe_shared_expert_)*(intermediate|ffn_hidden)_size",
        48,
    ),
    (r"intermediate_size_mlp|((de|en)coder_)?ffn_dim|n_inner|dff|dim_ff|feed_forward_size|d_inner", 48),
    (r"expert_ffn_hidden_size|moe_latent_size", 16),
    (
        r"hidden_size|n_embd|d_model|emb_dim|embedding_dim|((in|out)put_)?embedding_size|word_embed_proj_dim|lru_width",
        32,
    ),
    (r"attention_hidden_size|hidden_size_per_layer_input|router_hidden_size|laurel_rank|dim_model_base", 32),
    (r"(\w+_)?vocab_size(_per_layer_input)?|encoder_hash_byte_group_vocab", VOCAB),
    (r"num_hidden_layers|n_layers?|num_layers|(de|en)coder_layers|num_(de|en)coder_layers|num_blocks", LAYERS),
    (r"(swa_)?num_attention_heads|n_heads?|num_heads|(de|en)coder_attention_heads|num_(de|en)coder_attention_heads", 4),
    (r"attention_heads|index_n_heads|num_query_groups", 4),
    (r"(swa_)?num_key_value_heads|num_kv_heads", 2),
    (
        r"(global_|swa_|swa_v_|index_|qk_rope_|qk_nope_|v_|linear_|attention_)*head_(dim|size)|d_head|dim_head|kv_channels",
        8,
    ),
    (r"rotary_dim|d_rel|o_groups", 4),
    (r"(q|kv|o)_lora_rank|qk_head_dim|adapter_rank|hc_lowrank|loop_gate_rank|gated_norm_rank", 16),
    (r"num_experts|num_local_experts|n_routed_experts|moe_num_experts|zero_expert_num", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|index_topk(_blocks)?", 2),
    (r"(n|topk|num_expert)_group", 1),
    (r"(n|num|moe_num)_shared_experts|first_k_dense_replace|num_dense_layers|num_kv_shared_layers", 1),
    (r"max_position_embeddings|n_positions|max_seq_len|n_ctx|context_length|model_max_length", 256),
    (r"mamba_n_heads|mamba_num_heads|linear_num_(key|value)_heads|linear_num_heads|n_mamba_heads", 4),
    (r"mamba_d_head|mamba_head_?dim|linear_(key|value)_head_dim", 16),
    (r"mamba_d_state|ssm_state_size|state_size", 8),
    (r"n_groups|mamba_n_groups|mamba_ngroups", 1),
    (r"mamba_dt_rank|time_step_rank", 4),
    (r"mamba_d_ssm", 64),
    (r"(mamba_)?chunk_size", 16),
    (r"(bos|eos|sep|cls|mask|decoder_start|forced_eos|forced_bos|eod)_token_id", 2),
    (r"pad_token_id", 0),
    (r"query_pre_attn_scalar", 8),
    (r"ngram_vocab_size_base", 50),
    (r"ple_embed_dim", 32),
)
# Fields whose value for a family depends on others.
_OVERRIDES: Mapping[str, Mapping[str, Any]] = {}


def model_types() -> list[str]:
    """Model types of transformers' table of causal models, each class of a model once."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str) -> PretrainedConfig:
    """A small configuration of a model type, otherwise with the family's own defaults."""
    config = CONFIG_MAPPING[model_type]()
    values = _shrunk(config.to_dict(), type(config))
    values |= _OVERRIDES.get(model_type, {})
    return type(config)(**values)


def _shrunk(values: dict[str, Any], config_class: type | None = None) -> dict[str, Any]:
    out: dict[str, Any] = {}
    kinds = {name: list(v) for name, v in values.items() if _is_by_layer(name, v)}
    # At least two layers, and one of each kind.
    for name, value in values.items():
        if isinstance(value, dict) and name not in ("rope_parameters", "rope_scaling"):
            out[name] = _shrunk(value) if "model_type" in value else value
        elif name in kinds:
            continue
        elif isinstance(value, int) and not isinstance(value, bool):
            out[name] = _size(name, value)
        else:
            out[name] = value
    layers = LAYERS
    for per_layer in kinds.values():
        if isinstance(per_layer[0], str):
            layers = max(layers, len(dict.fromkeys(per_layer)))
    for name, per_layer in kinds.items():
        different = list(dict.fromkeys(per_layer)) if isinstance(per_layer[0], str) else per_layer
        out[name] = [different[i % len(different)] for i in range(layers)]
    for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        if name in out:
            out[name] = layers
    for name in ("transformers_version", "model_type", "architectures"):
        out.pop(name, None)
    return out


def _is_by_layer(name: str, value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and name.endswith(
            ("layer_types", "layers_block_type", "_pattern", "indexer_types", "no_rope_layers", "layer_rope_theta")
        )
    )


def _size(name: str, value: int) -> int:
    if value <= 1:
        return value
    return next(
        (min(size, value) if size > 3 else size for pattern, size in _SIZES if re.fullmatch(pattern, name)), value
    )


def tiny_model(config: PretrainedConfig) -> PreTrainedModel:
    """A model of a configuration as transformers builds it, with weights large enough for attention to matter."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.1, generator=generator)
    return model
